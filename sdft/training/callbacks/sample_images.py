"""The same prompts and seeds before, during and after training, as pictures and as one sheet that grows with the run."""

import json
import shutil
from pathlib import Path

import numpy as np
from lightning import Callback
from PIL import Image

from sdft.evaluation.plots.image_grid import build_labeled_grid
from sdft.models.sampling import Sampling
from sdft.runs.files import atomic_write
from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.metrics import TrainingMetrics


class SampleImageWriter(Callback):
    def __init__(
        self,
        folder: Path,
        sampling: Sampling,
        prompts: list[str],
        resolution: int,
        every: int,
        ema: EMA,
        training_metrics: TrainingMetrics,
    ):
        self.folder, self.sampling, self.prompts, self.resolution = folder, sampling, prompts, resolution
        self.every, self.ema, self.training_metrics = every, ema, training_metrics
        self.sampled: int | None = None  # step

    def on_train_start(self, trainer, module):
        if trainer.is_global_zero:
            delete_samples_after(self.folder / "samples", trainer.global_step)
        if trainer.global_step == 0:
            self.sample(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.every and trainer.global_step % self.every == 0 and trainer.global_step != self.sampled:
            self.sample(trainer, module)

    def on_train_end(self, trainer, module):
        if trainer.global_step != self.sampled:
            self.sample(trainer, module)

    def sample(self, trainer, module) -> None:
        self.sampled = trainer.global_step
        with self.training_metrics.pause_clock(), self.ema.apply_averages(module):
            pictures = self.sampling(module.model, self.prompts, self.resolution)
        if not trainer.is_global_zero:
            return
        step = self.folder / "samples" / f"step-{trainer.global_step:06d}"
        step.mkdir(parents=True, exist_ok=True)
        requests = self.sampling.requests(self.prompts)
        for number, picture in enumerate(pictures):
            picture.save(step / f"{number:03d}.png")
        facts = [{"file": f"{n:03d}.png", "prompt": p, "seed": s} for n, (p, s) in enumerate(requests)]
        (step / "samples.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        growing = build_sample_sheet(self.folder / "samples", self.sampling.images)
        with atomic_write(self.folder / "samples.png") as file:
            growing.save(file, format="PNG")
        for logger in trainer.loggers:
            log_samples(logger, pictures, [prompt for prompt, _ in requests], growing, trainer.global_step)

    def state_dict(self):
        return {"sampled": self.sampled}

    def load_state_dict(self, state):
        self.sampled = state["sampled"]


def delete_samples_after(folder: Path, step: int) -> None:
    """What an earlier process sampled after its last checkpoint is sampled again."""
    for place in folder.glob("step-*"):
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)


def log_samples(logger, pictures: list[Image.Image], prompts: list[str], growing: Image.Image, step: int) -> None:
    """On the dashboard: each picture with its prompt, and the sheet."""
    if hasattr(logger, "log_image"):  # W&B
        logger.log_image("samples", pictures, step=step, caption=prompts)
    log_image_sheet(logger, "sheet", growing, step)


def log_image_sheet(logger, name: str, picture: Image.Image, step: int) -> None:
    """One picture on the dashboard, where there is one."""
    if hasattr(logger, "log_image"):  # W&B
        logger.log_image(name, [picture], step=step)
    elif hasattr(logger.experiment, "add_image"):  # TensorBoard
        logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")


def build_sample_sheet(folder: Path, per_prompt: int, most: int = 12) -> Image.Image:
    """One row a sampled step, one column a prompt (its first image); of many steps, evenly chosen ones."""
    steps = sorted(folder.glob("step-*"))
    if len(steps) > most:
        steps = [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
    rows, prompts = [], []
    for step in steps:
        facts = json.loads((step / "samples.json").read_text(encoding="utf-8"))[::per_prompt]
        prompts = [fact["prompt"] for fact in facts]
        pictures = [Image.open(step / fact["file"]) for fact in facts]
        rows.append((f"step {int(step.name.removeprefix('step-'))}", pictures))
    return build_labeled_grid(rows, prompts)

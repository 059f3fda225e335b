"""Sample images of fixed prompts and seeds before, during and after training, as files and as one growing sheet."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from sdft.evaluation.plots.image_grid import build_labeled_grid
from sdft.models.sampling import Sampling
from sdft.runs.files import atomic_write
from sdft.runs.samples import read_samples
from sdft.training.callbacks.base import RunCallback


class SampleImageWriter(RunCallback):
    def __init__(self, sampling: Sampling, prompts: list[str], resolution: int, every: int):
        self.sampling, self.prompts, self.resolution, self.every = sampling, prompts, resolution, every
        self.last_step: int | None = None  # sampled

    @property
    def state_key(self) -> str:
        return "sample_images"

    def on_train_start(self, trainer, module):
        if trainer.is_global_zero:
            delete_samples_after(self.folder / "samples", trainer.global_step)
        if trainer.global_step == 0:
            self.write_samples(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.every and trainer.global_step % self.every == 0 and trainer.global_step != self.last_step:
            self.write_samples(trainer, module)

    def on_train_end(self, trainer, module):
        if trainer.global_step != self.last_step:
            self.write_samples(trainer, module)

    def write_samples(self, trainer, module) -> None:
        """Sample on all ranks; write and log the images on rank 0."""
        self.last_step = trainer.global_step
        with self.training_metrics.pause_clock(), self.ema.apply_averages(module):
            images = self.sampling(module.model, self.prompts, self.resolution)
        if not trainer.is_global_zero:
            return
        step_folder = self.folder / "samples" / f"step-{trainer.global_step:06d}"
        step_folder.mkdir(parents=True, exist_ok=True)
        requests = self.sampling.requests(self.prompts)
        for number, image in enumerate(images):
            image.save(step_folder / f"{number:03d}.png")
        records = [{"file": f"{n:03d}.png", "prompt": p, "seed": s} for n, (p, s) in enumerate(requests)]
        text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
        (step_folder / "samples.json").write_text(text, encoding="utf-8")
        sheet = build_sample_sheet(self.folder / "samples", self.sampling.images)
        with atomic_write(self.folder / "samples.png") as file:
            sheet.save(file, format="PNG")
        for logger in trainer.loggers:
            log_samples(logger, images, [prompt for prompt, _ in requests], sheet, trainer.global_step)

    def state_dict(self):
        return {"last_step": self.last_step}

    def load_state_dict(self, state):
        self.last_step = state["last_step"]


def delete_samples_after(folder: Path, step: int) -> None:
    """Delete samples later than the checkpoint that training resumes from; they are sampled again."""
    for step_folder in folder.glob("step-*"):
        if int(step_folder.name.removeprefix("step-")) > step:
            shutil.rmtree(step_folder)


def log_samples(logger, images: list[Image.Image], prompts: list[str], sheet: Image.Image, step: int) -> None:
    """Log each image with its prompt (W&B only), and the sheet."""
    if hasattr(logger, "log_image"):  # W&B
        logger.log_image("samples", images, step=step, caption=prompts)
    log_image_sheet(logger, "sheet", sheet, step)


def log_image_sheet(logger, name: str, sheet: Image.Image, step: int) -> None:
    """Log one image to W&B or TensorBoard; other loggers are ignored."""
    if hasattr(logger, "log_image"):  # W&B
        logger.log_image(name, [sheet], step=step)
    elif hasattr(logger.experiment, "add_image"):  # TensorBoard
        logger.experiment.add_image(name, np.asarray(sheet), step, dataformats="HWC")


def build_sample_sheet(folder: Path, images_per_prompt: int, max_rows: int = 12) -> Image.Image:
    """One row per sampled step (at most `max_rows`, evenly spaced), one column per prompt (its first image)."""
    step_folders = sorted(folder.glob("step-*"))
    if len(step_folders) > max_rows:
        last = len(step_folders) - 1
        step_folders = [step_folders[round(i * last / (max_rows - 1))] for i in range(max_rows)]
    rows, prompts = [], []
    for step_folder in step_folders:
        records = read_samples(step_folder)[::images_per_prompt]
        prompts = [record["prompt"] for record in records]
        images = [Image.open(step_folder / record["file"]) for record in records]
        rows.append((f"step {int(step_folder.name.removeprefix('step-'))}", images))
    return build_labeled_grid(rows, prompts)

"""Scores on the way: the protocol at every N steps, the best result kept, and a stop when nothing gets better."""

import shutil
from pathlib import Path

from lightning import Callback
from PIL import Image

import sdft.distributed as processes
from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.protocol import PROMPTS_GROUP
from sdft.evaluation.statistics import flatten_scores, format_score_name, orient_score
from sdft.evaluation.variants import BEST
from sdft.models.sampling import Sampling
from sdft.runs.evaluation_history import EvaluationHistory
from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.metrics import TrainingMetrics
from sdft.training.export.modelspec import write_result_metadata
from sdft.training.fsdp import unshard_model

EVALUATION_SEED_OFFSET = 10_000  # beyond those of the evaluation at the end, which is then no judge of its own choice


class PeriodicEvaluation(Callback):
    """`monitor` names the score, as `CLIP-I` or `controls/drift`, whose best result is kept in `best/`.

    `before` is the folder of the run that a resumed one goes on from.
    """

    def __init__(
        self,
        folder: Path,
        exam: Evaluator,
        sampling: Sampling,
        resolution: int,
        every: int,
        monitor: str | None,
        patience: int,
        ema: EMA,
        training_metrics: TrainingMetrics,
        name: str,
        before: Path | None = None,
    ):
        self.folder, self.exam, self.sampling, self.resolution = folder, exam, sampling, resolution
        self.every, self.monitor, self.patience = every, monitor, patience
        self.ema, self.training_metrics, self.name, self.before = ema, training_metrics, name, before
        self.timeline = EvaluationHistory(folder / "evaluation")
        self.best: dict | None = None  # step, metric and value
        self.since = 0  # evaluations since then
        self.measured: int | None = None  # step

    def on_train_start(self, trainer, module):
        if trainer.global_step == 0:
            self.measure(trainer, module)
        elif trainer.is_global_zero:
            self.take_over()
            first = self.timeline.entries()[0]
            if other := [key for key, value in self.asked().items() if first[key] != value]:
                raise ValueError(
                    f"evaluate_every: the run that is resumed was evaluated with other {', '.join(other)}; "
                    "give the same words as then, or evaluate_every=0"
                )
            self.exam.build_metrics(self.timeline.load_images(0))
        if self.best and self.best["metric"] != self.monitor:
            self.best, self.since = None, 0
        self.stop(trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0 and trainer.global_step != self.measured:
            self.measure(trainer, module)
            self.stop(trainer)

    def stop(self, trainer) -> None:
        if self.patience and self.since >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer, module):
        if trainer.global_step != self.measured:
            self.measure(trainer, module)

    def measure(self, trainer, module) -> None:
        """Draw, in all processes; score and write down, in the first; compare, in all."""
        self.measured = step = trainer.global_step
        with self.training_metrics.pause_clock(), self.ema.apply_averages(module):
            draw = lambda group: self.sampling(module.model, group.prompts, self.resolution)  # noqa: E731
            pictures = {group.name: draw(group) for group in self.exam.groups}
            scores = processes.broadcast(self.score(pictures, step) if trainer.is_global_zero else None)
            if self.monitor and step:
                self.compare(step, scores, module)
        told = {f"scores/{name}": s["value"] for name, s in flatten_scores(scores).items() if s["value"] is not None}
        for logger in trainer.loggers:
            logger.log_metrics(told, step)

    def score(self, pictures: dict[str, list[Image.Image]], step: int) -> dict:
        self.timeline.save_images(pictures, step)
        if step == 0:
            self.exam.build_metrics(pictures)
        scores = self.exam.compute_scores(pictures)
        self.timeline.write({"step": step, **self.asked(), "scores": scores})
        return scores

    def compare(self, step: int, scores: dict, module) -> None:
        """Keep the result when its score is the best so far; what could not be computed never is."""
        group, name = split_metric_key(self.monitor)
        direction = self.exam.metrics[group][name].higher_is_better
        value = scores[group][name]["value"]
        before = self.best["value"] if self.best else None
        if orient_score(value, direction) > orient_score(before, direction):
            model = unshard_model(module.model)
            if processes.rank() == 0:
                module.method.save(model, self.folder / BEST, self.name)
                write_result_metadata(self.folder / BEST, self.folder, module.method.output_kind, step)
            self.best, self.since = {"step": step, "metric": self.monitor, "value": value}, 0
        else:
            self.since += 1

    def take_over(self) -> None:
        """What the run before has evaluated: the base's pictures among it, which this run cannot make any more."""
        if self.timeline.entries():
            return
        before = EvaluationHistory(self.before / "evaluation") if self.before else None
        if not before or not before.entries():
            raise ValueError("evaluate_every: the run that is resumed did not evaluate its base; give evaluate_every=0")
        self.timeline.copy_from(before)
        if (self.before / BEST).is_dir():
            shutil.copytree(self.before / BEST, self.folder / BEST, dirs_exist_ok=True)

    def asked(self) -> dict:
        """What the pictures of a step are of."""
        groups = {group.name: group.prompts for group in self.exam.groups}
        drawn = {name: value for name, value in self.sampling.to_dict().items() if name != "batch_size"}
        return {"groups": groups, "images": self.exam.images, "sampling": drawn}

    def state_dict(self):
        return {"best": self.best, "since": self.since, "measured": self.measured}

    def load_state_dict(self, state):
        self.best, self.since, self.measured = state["best"], state["since"], state["measured"]


def split_metric_key(monitor: str) -> tuple[str, str]:
    """Group and name of a score."""
    group, slash, name = monitor.rpartition("/")
    return (group, name) if slash else (PROMPTS_GROUP, monitor)


def check_checkpoint_metric(monitor: str | None, exam: Evaluator) -> None:
    """Before anything is trained: does the score exist here?"""
    exam.build_metrics({group.name: [Image.new("RGB", (8, 8))] for group in exam.groups})
    if monitor is None:
        return
    there = [format_score_name(group, name) for group, row in exam.metrics.items() for name in row]
    if format_score_name(*split_metric_key(monitor)) not in there:
        missing = "".join(f"; {name} not measured: {why}" for name, why in exam.scorers.missing.items())
        raise ValueError(f"checkpoint_metric={monitor}: choose one of {', '.join(there)}{missing}")

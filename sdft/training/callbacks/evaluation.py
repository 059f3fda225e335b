"""Evaluation during training: run the protocol every N steps, save the best result, and stop early without improvement."""

import shutil
from pathlib import Path

from PIL import Image

import sdft.distributed as processes
from sdft.evaluation.statistics import flatten_scores, orient_score
from sdft.evaluation.variants import BEST
from sdft.models.sampling import Sampling
from sdft.runs.evaluation_history import EvaluationHistory
from sdft.runs.evaluations import drop_batch_size
from sdft.training.callbacks.base import RunCallback
from sdft.training.export.modelspec import write_result_metadata
from sdft.training.fsdp import unshard_model
from sdft.training.intermediate_evaluation import IntermediateEvaluation, split_metric_key

EVALUATION_SEED_OFFSET = (
    10_000  # disjoint from the final evaluation's seeds, so that selection does not bias its scores
)


class PeriodicEvaluation(RunCallback):
    """`monitor` names the score that selects the result in `best/`, such as `CLIP-I` or `controls/drift`.

    `previous_run` is the folder of the run that a resumed run continues.
    """

    def __init__(
        self,
        evaluation: IntermediateEvaluation,
        sampling: Sampling,
        resolution: int,
        every: int,
        monitor: str | None,
        patience: int,
        name: str,
        previous_run: Path | None = None,
    ):
        self.evaluation, self.sampling, self.resolution = evaluation, sampling, resolution
        self.every, self.monitor, self.patience = every, monitor, patience
        self.name, self.previous_run = name, previous_run
        self.best: dict | None = None  # step, metric and value
        self.evaluations_since_best = 0
        self.last_step: int | None = None  # of the last evaluation

    def setup(self, trainer, module, stage):
        super().setup(trainer, module, stage)
        self.history = EvaluationHistory(self.folder / "evaluation")

    @property
    def state_key(self) -> str:
        return "evaluation"

    def on_train_start(self, trainer, module):
        if trainer.global_step == 0:
            self.evaluate(trainer, module)
        elif trainer.is_global_zero:
            self.copy_previous_history()
            first = self.history.read_entries()[0]
            if changed := [key for key, value in self.describe_images().items() if first[key] != value]:
                raise ValueError(
                    f"evaluate_every: {', '.join(changed)} differ from the evaluations of the resumed run; "
                    "use its options, or evaluate_every=0"
                )
            self.evaluation.evaluator.build_metrics(self.history.load_images(0))
        if self.best and self.best["metric"] != self.monitor:
            self.best, self.evaluations_since_best = None, 0
        self.stop_without_improvement(trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0 and trainer.global_step != self.last_step:
            self.evaluate(trainer, module)
            self.stop_without_improvement(trainer)

    def stop_without_improvement(self, trainer) -> None:
        if self.patience and self.evaluations_since_best >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer, module):
        if trainer.global_step != self.last_step:
            self.evaluate(trainer, module)

    def evaluate(self, trainer, module) -> None:
        """Sample on all ranks, score and record on rank 0, update the best result on all ranks, and log the scores."""
        self.last_step = step = trainer.global_step
        with self.training_metrics.pause_clock(), self.ema.apply_averages(module):
            images = {
                group.name: self.sampling(module.model, group.prompts, self.resolution)
                for group in self.evaluation.groups
            }
            scores = processes.broadcast(self.score_images(images, step) if trainer.is_global_zero else None)
            if self.monitor and step:
                self.update_best(step, scores, module)
        logged = {f"scores/{name}": s["value"] for name, s in flatten_scores(scores).items() if s["value"] is not None}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step)

    def score_images(self, images: dict[str, list[Image.Image]], step: int) -> dict:
        """Save the images of all groups, score them, and write both to the history."""
        self.history.save_images(images, step)
        if step == 0:
            self.evaluation.evaluator.build_metrics(images)
        scores = self.evaluation.evaluator.compute_scores(images)
        self.history.write_entry({"step": step, **self.describe_images(), "scores": scores})
        return scores

    def update_best(self, step: int, scores: dict, module) -> None:
        """Save the result if its score is the best so far; a missing score never is."""
        group, name = split_metric_key(self.monitor)
        direction = self.evaluation.directions[group][name]
        value = scores[group][name]["value"]
        best_value = self.best["value"] if self.best else None
        if orient_score(value, direction) > orient_score(best_value, direction):
            with module.masters.use_in_networks():
                model = unshard_model(module.model)
                if processes.rank() == 0:
                    module.method.save(model, self.folder / BEST, self.name)
                    write_result_metadata(self.folder / BEST, self.folder, module.method.output_kind, step)
            self.best, self.evaluations_since_best = {"step": step, "metric": self.monitor, "value": value}, 0
        else:
            self.evaluations_since_best += 1

    def copy_previous_history(self) -> None:
        """Copy the evaluations of the previous run, including the base's images, which a resumed run cannot sample again."""
        if self.history.read_entries():
            return
        previous = EvaluationHistory(self.previous_run / "evaluation") if self.previous_run else None
        if not previous or not previous.read_entries():
            raise ValueError(
                "evaluate_every: the resumed run has no evaluation of its base model; use evaluate_every=0"
            )
        self.history.copy_from(previous)
        if (self.previous_run / BEST).is_dir():
            shutil.copytree(self.previous_run / BEST, self.folder / BEST, dirs_exist_ok=True)

    def describe_images(self) -> dict:
        """The settings that the images of a step depend on."""
        groups = {group.name: group.prompts for group in self.evaluation.groups}
        sampling = drop_batch_size(self.sampling.to_dict())
        return {"groups": groups, "images": self.evaluation.images, "sampling": sampling}

    def state_dict(self):
        return {
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
            "last_step": self.last_step,
        }

    def load_state_dict(self, state):
        self.best, self.last_step = state["best"], state["last_step"]
        self.evaluations_since_best = state["evaluations_since_best"]

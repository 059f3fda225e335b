"""Build the metrics of each prompt group, and score images with them; unavailable ones are reported and skipped."""

from dataclasses import replace

import torch
from PIL import Image

from sdft.data.dataset import CaptionedImage, EvaluationSpec, ImageDataset
from sdft.evaluation.metrics.base import EvaluationData, Metric
from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError
from sdft.evaluation.protocol import PROMPTS_GROUP, EvaluationProtocol, PromptGroup
from sdft.evaluation.scorers import Scorers
from sdft.evaluation.statistics import summarize_metric

MAX_SHORT_SIDE = 512  # pixels


class Evaluator:
    """All metrics of a run's prompt groups. `build_metrics` needs the base model's images."""

    def __init__(
        self,
        scorers: Scorers,
        protocol: EvaluationProtocol,
        groups: list[PromptGroup],
        training_images: ImageDataset,
        evaluation_spec: EvaluationSpec | None,
    ):
        self.scorers, self.protocol, self.groups, self.evaluation_spec = scorers, protocol, groups, evaluation_spec
        self.images = protocol.images
        step = max(1, -(-len(training_images) // scorers.config.max_reference_images))
        self.training_images = [
            downscale_reference(training_images[index]) for index in range(0, len(training_images), step)
        ]
        real = evaluation_spec.real if evaluation_spec else None
        self.real_images = [real[i] for i in range(len(real))] if real else []

    def scoring_prompts(self, group: PromptGroup) -> list[str]:
        """Scoring prompt of each image of a group."""
        return [text for text in group.scoring_prompts for _ in range(self.images)]

    def build_metrics(self, base: dict[str, list[Image.Image]]) -> None:
        """Build the metrics of every group; `base` are the base model's images by group."""
        self.metrics = {group.name: self.build_group_metrics(group.name, base[group.name]) for group in self.groups}
        self.scorers.offload()

    def build_group_metrics(self, group: str, base: list[Image.Image]) -> dict[str, Metric]:
        """The metrics of one group by name, without those whose scorer is unavailable."""
        config, data = self.scorers.config, self.collect_data(group, base)
        metrics: dict[str, Metric] = {}
        for name, metric in (config.concept_metrics if group == PROMPTS_GROUP else config.control_metrics).items():
            scorer = getattr(self.scorers, metric.scorer_name) if metric.scorer_name else None
            if metric.scorer_name and not scorer:
                continue
            try:
                metrics |= metric.build(name, scorer, data)
            except ScorerUnavailableError as error:
                self.scorers.missing[error.name or name] = str(error)
        return metrics

    def collect_data(self, group: str, base: list[Image.Image]) -> EvaluationData:
        """What the images of a group are compared with."""
        data = EvaluationData(self.images, self.training_images, base_images=base)
        if group != PROMPTS_GROUP:
            return data
        captioned_images = self.real_images
        if not self.evaluation_spec:
            captioned_images = [replace(s, caption=self.protocol.strip_token(s.caption)) for s in self.training_images]
        return replace(
            data,
            real_images=self.real_images or self.training_images,
            captioned_images=captioned_images,
            evaluation_spec=self.evaluation_spec,
        )

    @torch.no_grad()
    def update_metrics(self, images: dict[str, list[Image.Image]]) -> dict[str, dict[str, Metric]]:
        """Reset the metrics of every group, update them with its images, and return them."""
        for group in self.groups:
            for metric in self.metrics[group.name].values():
                metric.reset()
                metric.update(images[group.name], self.scoring_prompts(group))
        return self.metrics

    def compute_scores(self, images: dict[str, list[Image.Image]]) -> dict[str, dict[str, dict]]:
        """Scores of one state by group and name, in the format of `scores.json`."""
        groups = self.update_metrics(images)
        self.scorers.offload()
        return {
            group: {name: summarize_metric(metric, self.images) for name, metric in metrics.items()}
            for group, metrics in groups.items()
        }

    def compute_references(self) -> dict[str, dict[str, float]]:
        """Scores of real images by group and name, where defined."""
        references = {}
        for group, metrics in self.metrics.items():
            values = {name: metric.compute_reference() for name, metric in metrics.items()}
            references[group] = {name: value for name, value in values.items() if value is not None}
        return references


def downscale_reference(sample: CaptionedImage) -> CaptionedImage:
    """Limit the short side to `MAX_SHORT_SIDE`, which no scorer exceeds, to save memory."""
    factor = MAX_SHORT_SIDE / min(sample.image.size)
    if factor >= 1:
        return sample
    size = tuple(max(1, round(side * factor)) for side in sample.image.size)
    return replace(sample, image=sample.image.resize(size, Image.Resampling.LANCZOS), mask=None)

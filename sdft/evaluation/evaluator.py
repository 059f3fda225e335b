"""Choose the metrics for each prompt group and load their scorers; unavailable ones are reported and skipped."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import torch
from PIL import Image
from torchmetrics import Metric

from sdft.data.dataset import CaptionedImage, EvaluationSpec, ImageDataset
from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.metrics.clip import ClipFeatureExtractor
from sdft.evaluation.metrics.clip_i import ClassPreservation, ReferenceSimilarity
from sdft.evaluation.metrics.clip_t import ClipT
from sdft.evaluation.metrics.dino import DinoFeatureExtractor
from sdft.evaluation.metrics.diversity import Diversity
from sdft.evaluation.metrics.drift import BaseDrift, DistributionDrift
from sdft.evaluation.metrics.face_embedding import FaceEmbedder
from sdft.evaluation.metrics.face_similarity import (
    FaceDetectionRate,
    FaceDistance,
    FaceSimilarity,
    FaceVerificationRate,
)
from sdft.evaluation.metrics.feature_extractor import Scorer, ScorerUnavailableError
from sdft.evaluation.metrics.fid_kid_cmmd import CMMD, FID, KID
from sdft.evaluation.metrics.lpips import ClipPerceptualDistance, Lpips
from sdft.evaluation.metrics.memorization import NearestTrainingImage
from sdft.evaluation.metrics.zero_shot import ZeroShotAccuracy
from sdft.evaluation.protocol import PROMPTS_GROUP, EvaluationProtocol, PromptGroup
from sdft.evaluation.statistics import summarize_metric

DISTRIBUTION_METRICS = {"CMMD": CMMD, "FID": FID, "KID": KID}
MAX_DIVERSITY_REFERENCES = 64  # real images compared pairwise
MAX_SHORT_SIDE = 512  # pixels

NamedMetrics = Iterator[tuple[str, Metric]]


class Scorers:
    """The scorers of a `sdft.evaluation.metrics_config.MetricsConfig`; `missing` says how to obtain each unavailable one.

    Loaded at once, so that missing weights are reported before training; embedded ones, always available, on first use.
    """

    def __init__(self, config, device: str = "cpu"):
        self.config, self.device, self.missing = config, device, {}
        if not config.is_embedded_only:
            self.get_model_names()

    @cached_property
    def clip(self) -> ClipFeatureExtractor | None:
        config = self.config
        return self.load_or_none("CLIP", lambda: ClipFeatureExtractor(config.clip, config.pretrained, self.device))

    @cached_property
    def dino(self) -> DinoFeatureExtractor | None:
        if not (name := self.config.dino):
            return None
        return self.load_or_none("DINO", lambda: DinoFeatureExtractor(name, self.device))

    @cached_property
    def faces(self) -> FaceEmbedder | None:
        if not (config := self.config).faces:
            return None
        return self.load_or_none("faces", lambda: FaceEmbedder(config.faces, config.detector, config.face_threshold))

    @cached_property
    def perceptual(self) -> Lpips | ClipPerceptualDistance | None:
        if self.config.perceptual == "clip":
            return self.clip and ClipPerceptualDistance(self.clip)
        net = self.config.perceptual
        return self.load_or_none("LPIPS", lambda: Lpips(net, self.device)) if net else None

    @property
    def subject(self) -> DinoFeatureExtractor | ClipFeatureExtractor | None:
        """DINO, the better feature extractor for objects, else CLIP."""
        return self.dino or self.clip

    def offload(self) -> None:
        """Move all networks to the CPU until their next use."""
        for scorer in vars(self).values():
            if isinstance(scorer, Scorer):
                scorer.offload()

    def load_or_none(self, name: str, load: Callable):
        """Return `load()`; if its weights are unavailable, None and an entry in `missing`."""
        try:
            return load()
        except ScorerUnavailableError as error:
            self.missing[name] = str(error)
            return None

    def get_model_names(self) -> dict[str, str]:
        """Model name of each available scorer."""
        scorers = {"clip": self.clip, "dino": self.dino, "perceptual": self.perceptual, "faces": self.faces}
        return {key: scorer.name for key, scorer in scorers.items() if scorer}


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
        self.real_images = [real[i] for i in range(len(real))] if real else None

    def scoring_prompts(self, group: PromptGroup) -> list[str]:
        """Scoring prompt of each image of a group."""
        return [text for text in group.scoring_prompts for _ in range(self.images)]

    def build_metrics(self, base: dict[str, list[Image.Image]]) -> None:
        """Build the metrics of every group; `base` are the base model's images by group."""
        self.metrics = {
            group.name: dict(
                self.build_concept_metrics()
                if group.name == PROMPTS_GROUP
                else self.build_control_metrics(base[group.name])
            )
            for group in self.groups
        }
        self.scorers.offload()

    def build_concept_metrics(self) -> NamedMetrics:
        """Metrics for the training concept, as (name, metric)."""
        scorers, references = self.scorers, [sample.image for sample in self.training_images]
        if scorers.clip and self.evaluation_spec:
            labels = self.evaluation_spec.caption_labels
            axes = list(next(iter(labels.values())))
            for axis in axes:
                yield axis, ZeroShotAccuracy(scorers.clip, labels, axis)
            if len(axes) > 1:
                yield " and ".join(axes), ZeroShotAccuracy(scorers.clip, labels)
        if scorers.clip:
            yield "CLIP-T", ClipT(scorers.clip)
            yield "CLIP-I", ReferenceSimilarity(scorers.clip, references)
        if scorers.dino:
            yield "DINO", ReferenceSimilarity(scorers.dino, references)
        if scorers.faces:
            yield from self.build_face_metrics(references)
        if scorers.perceptual:
            samples = (self.real_images or self.training_images)[:MAX_DIVERSITY_REFERENCES]
            yield "DIV", Diversity(scorers.perceptual, self.images, samples)
        if scorers.subject:
            yield "nearest", NearestTrainingImage(scorers.subject, references)
        feature_extractor = scorers.dino if scorers.config.feature_extractor == "dino" else scorers.clip
        if feature_extractor:
            real = [sample.image for sample in self.real_images] if self.real_images else references
            for name in scorers.config.distribution_metrics:
                yield name, DISTRIBUTION_METRICS[name](feature_extractor, real)

    def build_face_metrics(self, references: list[Image.Image]) -> NamedMetrics:
        """Face metrics; those that need training faces or a threshold are reported as missing without them."""
        faces = self.scorers.faces
        yield "faces", FaceDetectionRate(faces, references)
        if not any(face is not None for face in faces.embed_faces(references)):
            self.scorers.missing["face scores"] = f"no face detected in the {len(references)} training images"
            return
        yield "face cosine", FaceSimilarity(faces, references)
        yield "face L2", FaceDistance(faces, references)
        if faces.threshold is None:
            self.scorers.missing["verified"] = f"no default threshold for {faces.name}; set metrics.face_threshold"
        else:
            yield "verified", FaceVerificationRate(faces, references)

    def build_control_metrics(self, base: list[Image.Image]) -> NamedMetrics:
        """Metrics for class and control prompts (forgetting), as (name, metric)."""
        scorers, references = self.scorers, [sample.image for sample in self.training_images]
        if scorers.clip:
            yield "CLIP-T", ClipT(scorers.clip)
        if scorers.subject:
            yield "PRES", ClassPreservation(scorers.subject, references)
        if scorers.perceptual:
            yield "DIV", Diversity(scorers.perceptual, self.images)
        if scorers.clip:
            yield "drift", BaseDrift(scorers.clip, base, self.images)
            yield "drift CMMD", DistributionDrift(scorers.clip, base)
        if scorers.perceptual:
            yield "drift LPIPS", BaseDrift(scorers.perceptual, base, self.images)

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
            values = {name: self.compute_reference(metric, group) for name, metric in metrics.items()}
            references[group] = {name: value for name, value in values.items() if value is not None}
        return references

    def compute_reference(self, metric: Metric, group: str) -> float | None:
        if group == PROMPTS_GROUP and isinstance(metric, (ZeroShotAccuracy, ClipT)):
            return self.score_captioned_images(metric)
        return metric.compute_reference()

    def score_captioned_images(self, metric: ImageMetric) -> float | None:
        """Mean score of real images with their own captions as prompts."""
        samples = self.real_images if self.evaluation_spec else self.training_images
        if not samples:
            return None
        captions = [s.caption if self.evaluation_spec else self.protocol.strip_token(s.caption) for s in samples]
        return float(torch.as_tensor(metric.score_images([s.image for s in samples], captions)).mean())


def downscale_reference(sample: CaptionedImage) -> CaptionedImage:
    """Limit the short side to `MAX_SHORT_SIDE`, which no scorer exceeds, to save memory."""
    factor = MAX_SHORT_SIDE / min(sample.image.size)
    if factor >= 1:
        return sample
    size = tuple(max(1, round(side * factor)) for side in sample.image.size)
    return replace(sample, image=sample.image.resize(size, Image.Resampling.LANCZOS), mask=None)

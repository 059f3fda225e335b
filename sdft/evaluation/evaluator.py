"""Which metrics are asked of which prompts, and the scorers they ask; what is not on this machine is told and left out."""

from collections.abc import Callable
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
MAX_DIVERSITY_REFERENCES = 64  # real pictures of which all pairs are compared
MAX_SHORT_SIDE = 512  # pixels


class Scorers:
    """The scorers of a `sdft.evaluation.metrics_config.MetricsConfig`, by name; `missing` tells of each that is not there what to fetch.

    They are opened at once, so that this is told before anything is trained; embedded ones, which are always there, when asked.
    """

    def __init__(self, suite, device: str = "cpu"):
        self.suite, self.device, self.missing = suite, device, {}
        if not suite.is_embedded_only:
            self.get_model_names()

    @cached_property
    def clip(self) -> ClipFeatureExtractor | None:
        return self.tried("CLIP", lambda: ClipFeatureExtractor(self.suite.clip, self.suite.pretrained, self.device))

    @cached_property
    def dino(self) -> DinoFeatureExtractor | None:
        return (
            self.tried("DINO", lambda: DinoFeatureExtractor(self.suite.dino, self.device)) if self.suite.dino else None
        )

    @cached_property
    def faces(self) -> FaceEmbedder | None:
        if not (asked := self.suite).faces:
            return None
        return self.tried("faces", lambda: FaceEmbedder(asked.faces, asked.detector, asked.face_threshold))

    @cached_property
    def perceptual(self) -> Lpips | ClipPerceptualDistance | None:
        if self.suite.perceptual == "clip":
            return self.clip and ClipPerceptualDistance(self.clip)
        net = self.suite.perceptual
        return self.tried("LPIPS", lambda: Lpips(net, self.device)) if net else None

    @property
    def subject(self) -> DinoFeatureExtractor | ClipFeatureExtractor | None:
        """The better scorer of things."""
        return self.dino or self.clip

    def offload(self) -> None:
        """Until they are asked again, nothing of them lies on the device."""
        for scorer in vars(self).values():
            if isinstance(scorer, Scorer):
                scorer.offload()

    def tried(self, name: str, build: Callable):
        try:
            return build()
        except ScorerUnavailableError as error:
            self.missing[name] = str(error)
            return None

    def get_model_names(self) -> dict[str, str]:
        """What each scorer is."""
        there = {"clip": self.clip, "dino": self.dino, "perceptual": self.perceptual, "faces": self.faces}
        return {key: scorer.name for key, scorer in there.items() if scorer}


class Evaluator:
    """All metrics of a run's groups of prompts, once the base's pictures are known."""

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
        step = max(1, -(-len(training_images) // scorers.suite.max_reference_images))
        self.training_images = [
            downscale_reference(training_images[index]) for index in range(0, len(training_images), step)
        ]
        self.real = (
            [evaluation_spec.real[i] for i in range(len(evaluation_spec.real))]
            if evaluation_spec and evaluation_spec.real
            else None
        )

    def scoring_prompts(self, group: PromptGroup) -> list[str]:
        """What each picture of a group is asked about."""
        return [text for text in group.scoring_prompts for _ in range(self.images)]

    def build_metrics(self, base: dict[str, list[Image.Image]]) -> None:
        """`base` are the base model's pictures of every group."""
        self.metrics = {
            group.name: dict(self.of_prompts() if group.name == PROMPTS_GROUP else self.of_controls(base[group.name]))
            for group in self.groups
        }
        self.scorers.offload()

    def of_prompts(self):
        """What tells whether it was learned: names and metrics."""
        scorers, real = self.scorers, [picture.image for picture in self.training_images]
        if scorers.clip and self.evaluation_spec:
            axes = list(next(iter(self.evaluation_spec.caption_labels.values())))
            for axis in axes:
                yield axis, ZeroShotAccuracy(scorers.clip, self.evaluation_spec.caption_labels, axis)
            if len(axes) > 1:
                yield " and ".join(axes), ZeroShotAccuracy(scorers.clip, self.evaluation_spec.caption_labels)
        if scorers.clip:
            yield "CLIP-T", ClipT(scorers.clip)
            yield "CLIP-I", ReferenceSimilarity(scorers.clip, real)
        if scorers.dino:
            yield "DINO", ReferenceSimilarity(scorers.dino, real)
        if scorers.faces:
            yield from self.of_faces(real)
        if scorers.perceptual:
            yield (
                "DIV",
                Diversity(
                    scorers.perceptual, self.images, (self.real or self.training_images)[:MAX_DIVERSITY_REFERENCES]
                ),
            )
        if scorers.subject:
            yield "nearest", NearestTrainingImage(scorers.subject, real)
        features = scorers.dino if scorers.suite.feature_extractor == "dino" else scorers.clip
        if features:
            against = [picture.image for picture in self.real] if self.real else real
            yield from (
                (name, DISTRIBUTION_METRICS[name](features, against)) for name in scorers.suite.distribution_metrics
            )

    def of_faces(self, real: list[Image.Image]):
        faces = self.scorers.faces
        yield "faces", FaceDetectionRate(faces, real)
        if not any(face is not None for face in faces.embed_faces(real)):
            self.scorers.missing["face scores"] = f"no face was found in the {len(real)} training pictures"
            return
        yield "face cosine", FaceSimilarity(faces, real)
        yield "face L2", FaceDistance(faces, real)
        if faces.threshold is None:
            self.scorers.missing["verified"] = (
                f"{faces.name}'s threshold is not known here; give metrics.face_threshold"
            )
        else:
            yield "verified", FaceVerificationRate(faces, real)

    def of_controls(self, base: list[Image.Image]):
        """What tells whether it was forgotten."""
        scorers, real = self.scorers, [picture.image for picture in self.training_images]
        if scorers.clip:
            yield "CLIP-T", ClipT(scorers.clip)
        if scorers.subject:
            yield "PRES", ClassPreservation(scorers.subject, real)
        if scorers.perceptual:
            yield "DIV", Diversity(scorers.perceptual, self.images)
        if scorers.clip:
            yield "drift", BaseDrift(scorers.clip, base, self.images)
            yield "drift CMMD", DistributionDrift(scorers.clip, base)
        if scorers.perceptual:
            yield "drift LPIPS", BaseDrift(scorers.perceptual, base, self.images)

    def update_metrics(self, pictures: dict[str, list[Image.Image]]) -> dict[str, dict[str, Metric]]:
        """The metrics of every group, updated with its pictures."""
        for group in self.groups:
            for metric in self.metrics[group.name].values():
                metric.reset()
                metric.update(pictures[group.name], self.scoring_prompts(group))
        return self.metrics

    def compute_scores(self, pictures: dict[str, list[Image.Image]]) -> dict[str, dict[str, dict]]:
        """The scores of one state as files hold them, by group and name."""
        groups = self.update_metrics(pictures)
        self.scorers.offload()
        return {
            group: {name: summarize_metric(m, self.images) for name, m in metrics.items()}
            for group, metrics in groups.items()
        }

    def compute_references(self) -> dict[str, dict[str, float]]:
        """What real pictures score, where that can be asked."""
        found = {}
        for group, metrics in self.metrics.items():
            values = {name: self.compute_reference(metric, group) for name, metric in metrics.items()}
            found[group] = {name: value for name, value in values.items() if value is not None}
        return found

    def compute_reference(self, metric: Metric, group: str) -> float | None:
        if group == PROMPTS_GROUP and isinstance(metric, (ZeroShotAccuracy, ClipT)):
            return self.on_real(metric)
        return metric.compute_reference()

    def on_real(self, metric: ImageMetric) -> float | None:
        """The same score of real pictures with their own captions."""
        real = self.real if self.evaluation_spec else self.training_images
        if not real:
            return None
        captions = [p.caption if self.evaluation_spec else self.protocol.strip_token(p.caption) for p in real]
        return float(torch.as_tensor(metric.score_images([p.image for p in real], captions)).mean())


def downscale_reference(picture: CaptionedImage) -> CaptionedImage:
    """No scorer looks at more than `SHORT` pixels of the short side, and a thousand photographs would fill the memory."""
    share = MAX_SHORT_SIDE / min(picture.image.size)
    if share >= 1:
        return picture
    size = tuple(max(1, round(side * share)) for side in picture.image.size)
    return replace(picture, image=picture.image.resize(size, Image.Resampling.LANCZOS), mask=None)

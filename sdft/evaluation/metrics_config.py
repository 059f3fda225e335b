"""The metrics of a run by name, and settings of the scorers that they use."""

from dataclasses import dataclass, field

from sdft.evaluation.metrics.base import Metric
from sdft.evaluation.scorers import SCORER_NAMES, Scorers


@dataclass
class MetricsConfig:
    """Models of the scorers; all but `clip` are off when null.

    `dino` is a folder or hub id; `perceptual` is clip (its layers), or alex, vgg or squeeze for LPIPS; `faces` and `detector` are
    ONNX files (see `sdft.evaluation.metrics.face_embedding`). At most `max_reference_images` training images, evenly spaced,
    serve as references.

    `concept` are the metrics of the training concept by name, `control` those of class and control prompts (forgetting); null
    entries, and metrics without their scorer, are left out. `distribution_metrics` chooses from `distribution`, which compare
    image sets using `feature_extractor` (clip or dino); they follow those of `concept`.
    """

    clip: str
    pretrained: str | None = None
    dino: str | None = None
    perceptual: str | None = None
    faces: str | None = None
    detector: str = "cascade"
    face_threshold: float | None = None
    distribution_metrics: list[str] = field(default_factory=list)
    feature_extractor: str = "clip"
    max_reference_images: int = 1000
    concept: dict[str, Metric | None] = field(default_factory=dict)
    distribution: dict[str, Metric | None] = field(default_factory=dict)
    control: dict[str, Metric | None] = field(default_factory=dict)

    def __post_init__(self):
        if wrong := [name for name in self.distribution_metrics if name not in self.distribution]:
            raise ValueError(f"metrics.distribution_metrics={wrong[0]}: choose from {', '.join(self.distribution)}")
        if self.feature_extractor not in ("clip", "dino") or (self.feature_extractor == "dino" and not self.dino):
            raise ValueError(
                f"metrics.feature_extractor={self.feature_extractor}: choose clip, or dino with metrics.dino=FOLDER"
            )
        if self.max_reference_images < 1:
            raise ValueError(f"metrics.max_reference_images={self.max_reference_images}: choose 1 or more")
        for group in ("concept", "distribution", "control"):
            for name, metric in getattr(self, group).items():
                if metric is not None:
                    check_metric(f"metrics.{group}.{name}", metric)

    @property
    def concept_metrics(self) -> dict[str, Metric]:
        """Those of `concept`, then the chosen ones of `distribution`, as configured; `Metric.build` prepares them."""
        metrics = dict(self.concept) | {name: self.distribution[name] for name in self.distribution_metrics}
        return {name: metric for name, metric in metrics.items() if metric is not None}

    @property
    def control_metrics(self) -> dict[str, Metric]:
        return {name: metric for name, metric in self.control.items() if metric is not None}

    @property
    def is_embedded_only(self) -> bool:
        """Whether all scorers use embedded weights, so that none can be missing."""
        others = self.pretrained or self.dino or self.faces
        return self.clip == "tiny-clip" and self.perceptual in (None, "clip") and not others

    def load_scorers(self, device: str = "cpu") -> Scorers:
        return Scorers(self, device)


def check_metric(key: str, metric) -> None:
    """`ValueError` unless the config node `key` is a metric with a known scorer."""
    if not isinstance(metric, Metric):
        raise ValueError(
            f"{key}: not a metric; give a _target_ that is a subclass of sdft.evaluation.metrics.base.Metric"
        )
    if metric.scorer_name not in (None, *SCORER_NAMES):
        raise ValueError(f"{key}.scorer={metric.scorer_name}: choose one of {', '.join(SCORER_NAMES)}, or null")

"""Settings of the scorers and metrics of a run."""

from dataclasses import dataclass, field

DISTRIBUTION_METRIC_NAMES = ("CMMD", "FID", "KID")  # distances between the generated and real image sets


@dataclass
class MetricsConfig:
    """Models of the scorers; all but `clip` are off when null.

    `dino` is a folder or hub id; `perceptual` is clip (its layers), or alex, vgg or squeeze for LPIPS; `faces` and `detector` are
    ONNX files (see `sdft.evaluation.metrics.face_embedding`). `distribution_metrics` (CMMD, FID, KID) compare image sets, using
    `feature_extractor` (clip or dino). At most `max_reference_images` training images, evenly spaced, serve as references.
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

    def __post_init__(self):
        if wrong := [name for name in self.distribution_metrics if name not in DISTRIBUTION_METRIC_NAMES]:
            raise ValueError(
                f"metrics.distribution_metrics={wrong[0]}: choose from {', '.join(DISTRIBUTION_METRIC_NAMES)}"
            )
        if self.feature_extractor not in ("clip", "dino") or (self.feature_extractor == "dino" and not self.dino):
            raise ValueError(
                f"metrics.feature_extractor={self.feature_extractor}: choose clip, or dino with metrics.dino=FOLDER"
            )
        if self.max_reference_images < 1:
            raise ValueError(f"metrics.max_reference_images={self.max_reference_images}: choose 1 or more")

    @property
    def is_embedded_only(self) -> bool:
        """Whether all scorers use embedded weights, so that none can be missing."""
        others = self.pretrained or self.dino or self.faces
        return self.clip == "tiny-clip" and self.perceptual in (None, "clip") and not others

    def load_scorers(self, device: str = "cpu"):
        from sdft.evaluation.evaluator import Scorers

        return Scorers(self, device)

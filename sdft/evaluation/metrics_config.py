"""Which judges score a run."""

from dataclasses import dataclass, field

DISTRIBUTION_METRIC_NAMES = ("CMMD", "FID", "KID")  # distances of all pictures to real ones


@dataclass
class MetricsConfig:
    """`clip` judges; the others are off when null.

    `dino` is a folder or hub id, `perceptual` clip (its layers), or LPIPS over alex, vgg or squeeze, `faces` and `detector`
    ONNX files (see `sdft.evaluation.metrics.face_embedding`). `sets` are distances of all pictures to real ones, CMMD, FID or KID, by `features`:
    clip or dino. At most `references` training pictures, evenly chosen, are compared with.
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
        """Whether nothing is asked that could be missing."""
        others = self.pretrained or self.dino or self.faces
        return self.clip == "tiny-clip" and self.perceptual in (None, "clip") and not others

    def load_scorers(self, device: str = "cpu"):
        from sdft.evaluation.evaluator import Scorers

        return Scorers(self, device)

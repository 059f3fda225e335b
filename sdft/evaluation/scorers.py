"""The scorers of an evaluation: networks that metrics use, loaded once and shared; unavailable ones are reported."""

from collections.abc import Callable
from functools import cached_property

from sdft.evaluation.metrics.clip import ClipFeatureExtractor
from sdft.evaluation.metrics.dino import DinoFeatureExtractor
from sdft.evaluation.metrics.face_embedding import FaceEmbedder
from sdft.evaluation.metrics.feature_extractor import Scorer, ScorerUnavailableError
from sdft.evaluation.metrics.perceptual_distance import ClipPerceptualDistance, Lpips

SCORER_NAMES = ("clip", "dino", "faces", "perceptual", "subject")  # attributes of `Scorers`, for metrics


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

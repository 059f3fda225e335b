"""The perceptual metric that spaces and scores the frames."""

from sdft.distributed import select_device
from sdft.evaluation.metrics.perceptual_distance import Lpips, load_embedded_perceptual
from sdft.models.embedded import find_embedded_models


def build_perceptual_metric(cfg, settings):
    """The metric of `perceptual`, or None; raises `ValueError` before anything takes time."""
    name = cfg.perceptual
    if name == "auto":
        name = "tiny-clip" if cfg.model.get("name") in find_embedded_models() else "alex"
    if name == "none":
        if settings.frame_spacing == "even":
            raise ValueError(
                "perceptual=none frame_spacing=even: even spacing requires a perceptual metric; "
                "choose frame_spacing=uniform, or perceptual=alex"
            )
        return None
    device = select_device(cfg.accelerator)
    return load_embedded_perceptual(device) if name == "tiny-clip" else Lpips(name, device, option="perceptual")

"""Several LoRA files in one model at once: every layer changes by the weighted sum of what they change."""

import math
import warnings
from pathlib import Path

from sdft.lora.file import check_weight_count, find_lora_file
from sdft.lora.formats import load_lora
from sdft.models.stable_diffusion import StableDiffusion


def load_adapters(model: StableDiffusion, files: list[Path], weights: list[float] | None = None) -> list[str]:
    """Load each file (or the one of a run's or an adapter's folder) at its weight, 1 by default; returns the names it has inside.

    A weight of 1 is the file's own strength. `ValueError` for a file that does not fit, or weights that are not as many.
    """
    weights = [1.0] * len(files) if weights is None else check_weight_count(weights, len(files))
    if wrong := [weight for weight in weights if not math.isfinite(weight)]:
        raise ValueError(f"weights={weights}: {wrong[0]} is no number")
    names = [f"adapter_{number}" if number else "default" for number in range(len(files))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # which is what several are
        for name, file in zip(names, files, strict=True):
            load_lora(model, find_lora_file(Path(file).expanduser()), name)
    if names:
        model.build_pipeline().set_adapters(names, weights)
        model.requires_grad_(False).eval()
    return names

"""Load LoRA files into a model; scale and disable adapters of any type (LoRA, DoRA, LoHa, LoKr).

An adapter at scale 0 is inactive, so that the layer is exactly the base: a DoRA scaled to 0 would keep its magnitudes. All
functions leave `requires_grad` unchanged, which peft resets when it activates or disables an adapter.
"""

import math
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from sdft.lora.file import check_weight_count, find_lora_file
from sdft.lora.formats import load_lora
from sdft.models.diffusion_model import DiffusionModel


def load_adapters(model: DiffusionModel, files: list[Path], weights: list[float] | None = None) -> list[str]:
    """Load each file (or run or adapter folder) at its weight, 1 by default; return the adapter names.

    Every layer changes by the weighted sum. `ValueError` for a file that does not fit, for a NaN/Inf weight, or unless there is
    one weight per file.
    """
    weights = [1.0] * len(files) if weights is None else check_weight_count(weights, len(files))
    if invalid := [weight for weight in weights if not math.isfinite(weight)]:
        raise ValueError(f"weights={weights}: {invalid[0]} is not a finite number")
    names = [f"adapter_{number}" if number else "default" for number in range(len(files))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # expected for several adapters
        for name, file in zip(names, files, strict=True):
            load_lora(model, find_lora_file(Path(file).expanduser()), name)
    if names:
        set_adapter_scales(model, dict(zip(names, weights, strict=True)))
    return names


def set_adapter_scales(module: nn.Module, scales: dict[str, float]) -> None:
    """Use the adapters in `scales`, each at its scale; 1 is the trained strength, alpha / rank or alpha / sqrt(rank)."""
    layers = find_adapter_layers(module).values()
    with preserve_requires_grad(layers):
        for layer in layers:
            for name, scale in scales.items():
                layer.set_scale(name, scale)
            activate_nonzero_adapters(layer, list(scales))


@contextmanager
def scale_adapters(module: nn.Module, factors: float | dict[str, float]):
    """Multiply the scales of the adapters inside the context: all by one factor, or each by its own (default 1)."""
    layers = find_adapter_layers(module).values()
    states = [(dict(layer.scaling), list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    with preserve_requires_grad(layers):
        for layer in layers:
            for name, scale in layer.scaling.items():
                layer.scaling[name] = scale * (factors.get(name, 1.0) if isinstance(factors, dict) else factors)
            activate_nonzero_adapters(layer, list(layer.active_adapters))
    try:
        yield
    finally:
        with preserve_requires_grad(layers):
            for layer, (scaling, active, disabled) in zip(layers, states, strict=True):
                layer.scaling.update(scaling)
                layer.set_adapter(active)
                layer.enable_adapters(not disabled)


@contextmanager
def disable_adapters(module: nn.Module):
    """Compute the base inside the context, without the work of the adapters and without their random dropout."""
    layers = [layer for layer in find_adapter_layers(module).values() if not layer.disable_adapters]
    with preserve_requires_grad(layers):
        for layer in layers:
            layer.enable_adapters(False)
    try:
        yield
    finally:
        with preserve_requires_grad(layers):
            for layer in layers:
                layer.enable_adapters(True)


def find_adapter_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers with an adapter, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def activate_nonzero_adapters(layer: nn.Module, names: list[str]) -> None:
    """Use those of the adapters `names` that this layer has and whose scale is not 0; without any, disable them."""
    active = [name for name in names if layer.scaling.get(name)]
    if active and active != list(layer.active_adapters):
        layer.set_adapter(active)
    if bool(active) == layer.disable_adapters:
        layer.enable_adapters(bool(active))


@contextmanager
def preserve_requires_grad(layers: Iterable[nn.Module]):
    """Restore `requires_grad` of the layers' parameters on exit."""
    trainable = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)

"""Precision of a model's weights, the same in training, sampling and evaluation."""

from contextlib import contextmanager

import torch

from sdft.lora.scaling import find_adapter_layers
from sdft.models.diffusion_model import DiffusionModel


def set_precision(model: DiffusionModel, compute_dtype: torch.dtype, cast_frozen: bool = True) -> None:
    """Compute in `compute_dtype`; `cast_frozen` also stores the frozen weights in it, as for methods that add weights.

    The VAE, trainable parameters and adapters stay in fp32. Load adapters before: peft gives them the precision of their layer.
    """
    model.compute_dtype = compute_dtype
    layers = find_adapter_layers(model).values()
    added = {p for layer in layers for p in layer.parameters()}
    added -= {p for layer in layers for p in layer.get_base_layer().parameters()}
    for part in model.parts.values() if cast_frozen else ():
        for parameter in part.parameters():
            if not parameter.requires_grad and parameter not in added:
                parameter.data = parameter.data.to(compute_dtype)


@contextmanager
def use_precision(model: DiffusionModel, compute_dtype: torch.dtype, cast_frozen: bool = True):
    """Within the context the model is as after `set_precision`; then its weights are those from before, where they were cast."""
    weights = {parameter: parameter.data for parameter in model.parameters()}
    set_precision(model, compute_dtype, cast_frozen)
    weights = {parameter: weight for parameter, weight in weights.items() if weight.dtype != parameter.dtype}
    try:
        yield
    finally:
        for parameter, weight in weights.items():
            parameter.data = weight

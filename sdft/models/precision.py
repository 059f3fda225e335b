"""Precision of a model's weights, the same in training, sampling and evaluation."""

from collections.abc import Collection
from contextlib import contextmanager

import torch
from torch import nn

from sdft.models.diffusion_model import DiffusionModel


def set_precision(model: DiffusionModel, compute_dtype: torch.dtype, excluded: Collection[nn.Module] = ()) -> None:
    """Store the weights of all parts but the `excluded` ones in `compute_dtype`; the VAE stays in fp32.

    Load adapters before: peft gives them the precision of their layer.
    """
    model.compute_dtype = compute_dtype
    for part in model.parts.values():
        for parameter in part.parameters() if part not in excluded else ():
            parameter.data = parameter.data.to(compute_dtype)


@contextmanager
def use_precision(model: DiffusionModel, compute_dtype: torch.dtype):
    """Within the context the model is as after `set_precision`; afterwards it has the weights from before."""
    weights, previous_dtype = {parameter: parameter.data for parameter in model.parameters()}, model.compute_dtype
    set_precision(model, compute_dtype)
    try:
        yield
    finally:
        model.compute_dtype = previous_dtype
        for parameter, weight in weights.items():
            if parameter.dtype != weight.dtype:
                parameter.data = weight

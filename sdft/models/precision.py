"""Precision of a model's weights, the same in training, sampling and evaluation."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from sdft.models.diffusion_model import DiffusionModel
from sdft.models.weight_sources import network_sources
from sdft.runs.hashing import compute_checksum, compute_weights_digest, hash_weights, module_digests

DTYPE_CHOICE: ContextVar[Callable[[str], torch.dtype]] = ContextVar("dtype_choice", default=lambda part: torch.float32)


def load_model(
    node: DictConfig, dtype: torch.dtype, needs_fp32: Callable[[str], bool] = lambda part: False
) -> DiffusionModel:
    """The model of a config node, in `dtype` except the VAE and the parts that `needs_fp32`: no part exists in both."""
    with load_in_precision(dtype, needs_fp32):
        return instantiate(node)


def hash_in_fp32(model: DiffusionModel) -> str:
    """`hash_weights` of a loaded model, whatever the precision it was loaded in."""
    others = {name: child.state_dict() for name, child in model.named_children() if child not in network_sources}
    if len(others) == len(list(model.children())):
        return hash_weights(model)
    digests = module_digests.setdefault(model, {})
    checksum = compute_checksum({f"{name}.{key}": w for name, weights in others.items() for key, w in weights.items()})
    if (key := f"fp32 {checksum}") not in digests:
        digests[key] = compute_weights_digest(read_fp32_weights(model))
    return digests[key]


def read_fp32_weights(model: DiffusionModel) -> Iterator[tuple[str, Tensor]]:
    """Yield name and fp32 value of each weight, in the order of the state dict."""
    for name, network in model.named_children():
        source = network_sources.get(network)
        for key, weight in source.read(network) if source else network.state_dict().items():
            yield f"{name}.{key}", weight


@contextmanager
def load_in_precision(dtype: torch.dtype, needs_fp32: Callable[[str], bool] = lambda part: False):
    """Within the context, networks are loaded in `dtype`, except the VAE and the parts that `needs_fp32`."""
    token = DTYPE_CHOICE.set(lambda part: torch.float32 if part == "vae" or needs_fp32(part) else dtype)
    try:
        yield
    finally:
        DTYPE_CHOICE.reset(token)


def choose_part_dtype(part: str) -> torch.dtype:
    """The dtype in which to load the VAE or a part."""
    return DTYPE_CHOICE.get()(part)


def set_precision(model: DiffusionModel, compute_dtype: torch.dtype, excluded: Collection[nn.Module] = ()) -> None:
    """Store the weights of all parts but the `excluded` ones in `compute_dtype`; the VAE stays in fp32."""
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


@contextmanager
def add_adapters_in_fp32(network: nn.Module):
    """Within the context the weights of lower precision are fp32 zeros: peft gives adapters the precision of their layer."""
    weights = {p: p.data for p in network.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    for parameter, weight in weights.items():
        parameter.data = weight.new_zeros((), dtype=torch.float32).expand(weight.shape)  # takes no memory
    try:
        yield
    finally:
        for parameter, weight in weights.items():
            parameter.data = weight

"""Check the optimizer's settings before anything slow runs."""

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.runs.terminal import describe_error

UNSHARDED_OPTIMIZERS = (
    "torch.optim.Adafactor",
    "bitsandbytes.",
)  # whose operations torch's sharded tensors do not have


def build_optimizer(constructor: Callable, parameters: list):
    """Build an optimizer without what its constructor prints: it is built several times, to check it and to measure memory."""
    with redirect_stdout(io.StringIO()):
        return constructor(parameters)


def has_averaged_weights(optimizer) -> bool:
    """Whether an optimizer (or optimizer class) averages the weights itself, as schedule-free ones do."""
    return hasattr(optimizer, "eval") and hasattr(optimizer, "train")


def build_parameter_groups(
    parts: Mapping[str, Any], trainable: Mapping[str, Any], lr: Mapping[str, float], get_multiplier: Callable
) -> list[dict]:
    """Groups of the `trainable` parameters of each part by learning rate: that of the part times `get_multiplier(name)`."""
    groups = []
    for part, module in parts.items():
        by_multiplier: dict[float, list] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                by_multiplier.setdefault(get_multiplier(name), []).append(trainable[f"{part}.{name}"])
        for multiplier, parameters in sorted(by_multiplier.items()):
            name = part if multiplier == 1 else f"{part}_x{multiplier:g}"
            groups.append({"params": parameters, "lr": lr[part] * multiplier, "name": name})
    return groups


def check_optimizer(cfg: DictConfig) -> None:
    """Build the optimizer for one parameter; `ValueError` with the constructor's message if that fails."""
    import torch

    optimizer = instantiate(cfg, _convert_="all")
    if not isinstance(optimizer, partial):
        raise ValueError(
            f"optimizer._partial_={cfg.get('_partial_')}: set it to true; the optimizer is built once its parameters exist"
        )
    settings = ", ".join(f"{key}={value}" for key, value in optimizer.keywords.items())
    try:
        build_optimizer(optimizer, [torch.nn.Parameter(torch.zeros(1))])
    except Exception as error:  # the type depends on the optimizer and on the setting
        message = describe_error(error)
        raise ValueError(f"optimizer: {optimizer.func.__name__}({settings}) failed: {message}") from None


def check_sharded_optimizer(cfg: DictConfig, choice: str) -> None:
    """`ValueError` for an optimizer, chosen as optimizer=`choice`, that cannot update weights sharded by FSDP."""
    if cfg["_target_"].startswith(UNSHARDED_OPTIMIZERS):
        raise ValueError(
            f"optimizer={choice}: does not support the sharded weights of strategy=fsdp; "
            "choose adamw, prodigy or schedule_free, or strategy=ddp"
        )

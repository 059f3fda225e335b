"""Convert a layer's tensors of any adapter type to two factors and an alpha."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdft.lora.key_names import detect_adapter_type
from sdft.lora.low_rank import LowRankLayer
from sdft.lora.to_lora import cap_rank, factorize_dense, factorize_hadamard, factorize_kronecker

MAX_FILE_RANK = 1 << 14


def parse_layer(
    name: str, group: dict[str, Tensor], shape: tuple[int, ...], header_alpha: Callable[[int], float | None]
) -> LowRankLayer:
    """Parse the adapter of a weight of `shape`; LoHa, LoKr and three-factor convolutions become the equivalent LoRA.

    The tensor `alpha` takes precedence over `header_alpha(rank)`; without both, alpha is the rank.
    """
    for role, tensor in group.items():
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{name}: {role} contains NaN/Inf")
    adapter_type = detect_adapter_type(group)
    parse = {"lora": parse_lora, "locon": parse_lora, "loha": parse_loha, "lokr": parse_lokr}[adapter_type]
    up, down, rank = parse(name, group)
    in_size = math.prod(shape[1:])
    if len(up) != shape[0] or down.numel() != len(down) * in_size or up.numel() != len(up) * len(down):
        raise ValueError(f"{name}: up {list(up.shape)} and down {list(down.shape)} do not multiply to {list(shape)}")
    up, down = up.reshape(shape[0], -1, *[1] * (len(shape) - 2)), down.reshape(-1, *shape[1:])
    stored = float(group["alpha"].float().reshape(-1)[0]) if "alpha" in group and group["alpha"].numel() == 1 else None
    if "alpha" in group and stored is None:
        raise ValueError(f"{name}: alpha {list(group['alpha'].shape)} is not a scalar")
    alpha = stored if stored is not None else header_alpha(rank)
    scale = 1.0 if alpha is None or rank == 0 else alpha / rank
    exact = adapter_type == "lora" and alpha is not None
    return LowRankLayer(up, down, alpha if exact else scale * len(down), parse_magnitude(name, group, shape))


def require_factors(name: str, group: dict[str, Tensor], *roles: str) -> list[Tensor]:
    """Return the factors of these roles; `ValueError` if one is missing."""
    for role in roles:
        if role not in group:
            raise ValueError(f"{name}: has {', '.join(sorted(group))} without {role}")
        if not 1 <= group[role].ndim <= 4 or not 1 <= len(group[role]) <= MAX_FILE_RANK or not group[role].numel():
            raise ValueError(f"{name}: {role} {list(group[role].shape)} is not a factor")
    return [group[role] for role in roles]


def parse_lora(name: str, group: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    up, down = require_factors(name, group, "up", "down")
    if "mid" not in group:
        return up, down, len(down)
    (mid,) = require_factors(name, group, "mid")  # `[rank, rank, h, w]` between two 1 x 1 convolutions
    if mid.ndim != 4 or mid.shape[:2] != (up.flatten(1).shape[1], len(down)):
        raise ValueError(f"{name}: mid {list(mid.shape)} does not match up and down")
    return up, torch.einsum("rshw,si->rihw", mid.float(), down.float().flatten(1)), len(down)


def parse_loha(name: str, group: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    a, b, c, d = (
        t.float().flatten(1) for t in require_factors(name, group, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    )
    if not a.shape[1] == len(b) == c.shape[1] == len(d) or len(a) != len(c) or b.shape[1] != d.shape[1]:
        raise ValueError(f"{name}: the shapes of the four LoHa factors do not match")
    return *cap_rank(*factorize_hadamard(a, b, c, d)), len(b)


def parse_lokr(name: str, group: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """Either matrix may be factorized; alpha is divided by the rank of a factor, if there is one."""
    rank = 0  # matrices stored in full are not scaled
    if "lokr_w1" in group:
        (w1,) = require_factors(name, group, "lokr_w1")
    else:
        a, b = require_factors(name, group, "lokr_w1_a", "lokr_w1_b")
        w1, rank = multiply_factors(name, a, b), len(b)
    if "lokr_w2" in group:
        (w2,) = require_factors(name, group, "lokr_w2")
        a, b = factorize_dense(w2.float())
    else:
        a, b = (t.float().flatten(1) for t in require_factors(name, group, "lokr_w2_a", "lokr_w2_b"))
        rank = len(b)
    if w1.ndim != 2 or a.shape[1] != len(b):
        raise ValueError(f"{name}: the shapes of the LoKr factors do not match")
    return *cap_rank(*factorize_kronecker(w1.float(), a, b)), rank


def multiply_factors(name: str, a: Tensor, b: Tensor) -> Tensor:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != len(b):
        raise ValueError(f"{name}: the shapes of the LoKr factors do not match")
    return a.float() @ b.float()


def parse_magnitude(name: str, group: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """DoRA magnitudes `[out]`."""
    if "magnitude" not in group:
        return None
    magnitude = group["magnitude"]
    size = list(magnitude.shape)
    if magnitude.numel() != shape[0] or (magnitude.ndim > 1 and shape[0] not in magnitude.shape[:2]):
        raise ValueError(f"{name}: magnitudes {size} do not match {shape[0]} outputs")
    if magnitude.ndim == 2 and magnitude.shape[0] == 1 and shape[0] > 1:
        raise ValueError(f"{name}: magnitudes {size} are per input (old LyCORIS), which is not supported")
    return magnitude.reshape(-1)

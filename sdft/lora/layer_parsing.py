"""The tensors that a file has for one layer, of whatever kind, as two factors and their alpha."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdft.lora.key_names import detect_adapter_type
from sdft.lora.low_rank import LowRankLayer
from sdft.lora.to_lora import cap_rank, factorize_dense, factorize_hadamard, factorize_kronecker

MAX_FILE_RANK = 1 << 14


def parse_layer(
    name: str, group: dict[str, Tensor], shape: tuple[int, ...], alpha: Callable[[int], float | None]
) -> LowRankLayer:
    """`shape` is the weight's; `alpha` of the rank is the header's, the tensor `alpha` goes before it, and without both it
    is the rank. A LoHa, a LoKr or a convolution in three factors becomes the LoRA that changes the weight by the same.
    """
    for role, tensor in group.items():
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{name}: its {role} holds values that are no numbers")
    kind = detect_adapter_type(group)
    up, down, rank = {"lora": parse_lora, "locon": parse_lora, "loha": parse_loha, "lokr": parse_lokr}[kind](
        name, group
    )
    into = math.prod(shape[1:])
    if len(up) != shape[0] or down.numel() != len(down) * into or up.numel() != len(up) * len(down):
        raise ValueError(f"{name}: up {list(up.shape)} and down {list(down.shape)} make no {list(shape)}")
    up, down = up.reshape(shape[0], -1, *[1] * (len(shape) - 2)), down.reshape(-1, *shape[1:])
    written = float(group["alpha"].float().reshape(-1)[0]) if "alpha" in group and group["alpha"].numel() == 1 else None
    if "alpha" in group and written is None:
        raise ValueError(f"{name}: its alpha {list(group['alpha'].shape)} is not one number")
    told = written if written is not None else alpha(rank)
    scale = 1.0 if told is None or rank == 0 else told / rank
    exact = kind == "lora" and told is not None
    return LowRankLayer(up, down, told if exact else scale * len(down), parse_magnitude(name, group, shape))


def require_factors(name: str, group: dict[str, Tensor], *roles: str) -> list[Tensor]:
    """`ValueError` for a factor without its partner."""
    for role in roles:
        if role not in group:
            raise ValueError(f"{name}: its {', '.join(sorted(group))} came without {role}")
        if not 1 <= group[role].ndim <= 4 or not 1 <= len(group[role]) <= MAX_FILE_RANK or not group[role].numel():
            raise ValueError(f"{name}: its {role} {list(group[role].shape)} is no factor")
    return [group[role] for role in roles]


def parse_lora(name: str, group: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    up, down = require_factors(name, group, "up", "down")
    if "mid" not in group:
        return up, down, len(down)
    (mid,) = require_factors(name, group, "mid")  # `[rank, rank, h, w]` between two 1 x 1 convolutions
    if mid.ndim != 4 or mid.shape[:2] != (up.flatten(1).shape[1], len(down)):
        raise ValueError(f"{name}: its mid {list(mid.shape)} does not stand between its up and down")
    return up, torch.einsum("rshw,si->rihw", mid.float(), down.float().flatten(1)), len(down)


def parse_loha(name: str, group: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    a, b, c, d = (
        t.float().flatten(1) for t in require_factors(name, group, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    )
    if not a.shape[1] == len(b) == c.shape[1] == len(d) or len(a) != len(c) or b.shape[1] != d.shape[1]:
        raise ValueError(f"{name}: the four factors of its LoHa do not go together")
    return *cap_rank(*factorize_hadamard(a, b, c, d)), len(b)


def parse_lokr(name: str, group: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """The first matrix may be two factors as well; the rank that alpha is divided by is that of a factor, if any is one."""
    rank = 0  # whole matrices are not scaled
    if "lokr_w1" in group:
        (w1,) = require_factors(name, group, "lokr_w1")
    else:
        a, b = require_factors(name, group, "lokr_w1_a", "lokr_w1_b")
        w1, rank = multiply_factors(name, a, b), len(b)
    if "lokr_w2" in group:
        (whole,) = require_factors(name, group, "lokr_w2")
        a, b = factorize_dense(whole.float())
    else:
        a, b = (t.float().flatten(1) for t in require_factors(name, group, "lokr_w2_a", "lokr_w2_b"))
        rank = len(b)
    if w1.ndim != 2 or a.shape[1] != len(b):
        raise ValueError(f"{name}: the factors of its LoKr do not go together")
    return *cap_rank(*factorize_kronecker(w1.float(), a, b)), rank


def multiply_factors(name: str, a: Tensor, b: Tensor) -> Tensor:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != len(b):
        raise ValueError(f"{name}: the factors of its LoKr do not go together")
    return a.float() @ b.float()


def parse_magnitude(name: str, group: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """`[out]`, of a DoRA."""
    if "magnitude" not in group:
        return None
    given = group["magnitude"]
    if given.numel() != shape[0] or (given.ndim > 1 and shape[0] not in given.shape[:2]):
        raise ValueError(f"{name}: its magnitudes {list(given.shape)} are not one for each of {shape[0]} outputs")
    if given.ndim == 2 and given.shape[0] == 1 and shape[0] > 1:
        raise ValueError(f"{name}: its magnitudes {list(given.shape)} are of inputs, as old LyCORIS wrote them")
    return given.reshape(-1)

"""Convert a layer's tensors of any adapter type to two factors and an alpha.

Formulas: LoRA (Hu et al., 2022), LoHa (Hyeon-Woo et al., 2022), LoKr and the Tucker forms of convolutions (Yeh et al., 2024).
Sizes are checked against the weight before anything is multiplied: a small file can describe a huge product.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdft.lora.dora import parse_magnitude
from sdft.lora.low_rank import LowRank, LowRankLayer
from sdft.lora.to_lora import factorize_dense, factorize_hadamard, factorize_kronecker, split_full_change

MAX_FILE_RANK = 1 << 14
FACTOR_ROLES = {  # by adapter type; the first with a role that the later ones lack
    "full": {"diff"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"},
    "lokr": {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"},
    "locon": {"up", "down", "mid"},
    "lora": {"up", "down"},
}
COMMON_ROLES = {"alpha", "scalar", "magnitude", "dora_scale"}
FILE_ADAPTER_TYPES = [*reversed(FACTOR_ROLES)]
AlphaLookup = Callable[[int], tuple[float | None, int]]  # alpha and rank of a header, for the rank of the factors


def detect_adapter_type(group: dict[str, Tensor]) -> str:
    return next((kind for kind, roles in FACTOR_ROLES.items() if (roles - FACTOR_ROLES["lora"]) & set(group)), "lora")


def parse_layer(
    name: str,
    group: dict[str, Tensor],
    shape: tuple[int, ...],
    header_alpha: AlphaLookup,
    input_norms: bool | None = None,
) -> LowRankLayer:
    """Parse the adapter of a weight of `shape`; other types than LoRA become the equivalent LoRA.

    The tensor `alpha` takes precedence over `header_alpha`; without both, alpha is the rank. `input_norms`: see `dora.py`.
    """
    for role, tensor in group.items():
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{name}: {role} contains NaN/Inf")
        if role in ("alpha", "scalar") and tensor.numel() != 1:
            raise ValueError(f"{name}: {role} {list(tensor.shape)} is not a scalar")
    adapter_type = detect_adapter_type(group)
    if extra := sorted(set(group) - FACTOR_ROLES[adapter_type] - COMMON_ROLES):
        raise ValueError(f"{name}: has {', '.join(extra)} beside the factors of {adapter_type}")
    parse = {"loha": parse_loha, "lokr": parse_lokr, "full": parse_full}.get(adapter_type, parse_lora)
    up, down, rank = parse(name, group, shape)
    in_size = math.prod(shape[1:])
    if len(up) != shape[0] or down.numel() != len(down) * in_size or up.numel() != len(up) * len(down):
        raise ValueError(f"{name}: up {list(up.shape)} and down {list(down.shape)} do not multiply to {list(shape)}")
    up, down = up.reshape(shape[0], -1, *[1] * (len(shape) - 2)), down.reshape(-1, *shape[1:])
    if "alpha" in group:
        alpha = float(group["alpha"].float())
    else:
        alpha, rank = header_alpha(rank)
    scale = 1.0 if alpha is None or rank == 0 else alpha / rank
    exact = adapter_type == "lora" and alpha is not None
    alpha = (alpha if exact else scale * len(down)) * float(group.get("scalar", torch.ones(())).float())
    return LowRankLayer(up, down, alpha, parse_magnitude(name, group, shape, input_norms))


def require_factors(name: str, group: dict[str, Tensor], *roles: str) -> list[Tensor]:
    """Return the factors of these roles; `ValueError` if one is missing."""
    for role in roles:
        if role not in group:
            raise ValueError(f"{name}: has {', '.join(sorted(group))} without {role}")
        if not 1 <= group[role].ndim <= 4 or not 1 <= len(group[role]) <= MAX_FILE_RANK or not group[role].numel():
            raise ValueError(f"{name}: {role} {list(group[role].shape)} is not a factor")
    return [group[role] for role in roles]


def parse_full(name: str, group: dict[str, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    """LyCORIS `full`: the change itself, which alpha does not scale."""
    (diff,) = require_factors(name, group, "diff")
    if len(diff) != shape[0] or diff.numel() != math.prod(shape):
        raise ValueError(f"{name}: diff {list(diff.shape)} is not a change of {list(shape)}")
    return *split_full_change(diff.float().flatten(1)), 0


def parse_lora(name: str, group: dict[str, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    up, down = require_factors(name, group, "up", "down")
    if "mid" not in group:
        return up, down, len(down)
    (mid,) = require_factors(name, group, "mid")
    up, expanded = expand_tucker(name, mid, up.flatten(1).T, down.flatten(1), shape)
    return up, expanded, len(down)


def expand_tucker(
    name: str,
    core: Tensor,
    a: Tensor,
    b: Tensor,
    shape: tuple[int, ...],
    sizes: tuple[int, int] | None = None,
) -> LowRank:
    """Factors `[out, r]` and `[r, in * h * w]` of a core `[r, s, h, w]` with `a` `[r, out]` and `b` `[s, in]`.

    `sizes`: out and in, by default those of `shape`.
    """
    if core.ndim != 4 or a.ndim != 2 or b.ndim != 2 or core.shape != (len(a), len(b), *shape[2:]):
        raise ValueError(f"{name}: the core {list(core.shape)} does not match its factors and {list(shape)}")
    if (a.shape[1], b.shape[1]) != (sizes or shape[:2]):
        raise ValueError(f"{name}: the factors of the core do not match {list(shape)}")
    return a.float().T.contiguous(), torch.einsum("rshw,si->rihw", core.float(), b.float()).flatten(1)


def parse_loha(name: str, group: dict[str, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    a, b, c, d = require_factors(name, group, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if {"hada_t1", "hada_t2"} & set(group):
        t1, t2 = require_factors(name, group, "hada_t1", "hada_t2")
        (a, b), (c, d) = expand_tucker(name, t1, a, b, shape), expand_tucker(name, t2, c, d, shape)
    a, b, c, d = (factor.float().flatten(1) for factor in (a, b, c, d))
    rank, size = len(b), (shape[0], math.prod(shape[1:]))
    if not rank == a.shape[1] == c.shape[1] == len(d) or any((len(x), y.shape[1]) != size for x, y in ((a, b), (c, d))):
        raise ValueError(f"{name}: the shapes of the four LoHa factors do not match")
    if rank**2 >= min(size):
        return *split_full_change((a @ b) * (c @ d)), rank
    return *factorize_hadamard(a, b, c, d), rank


def parse_lokr(name: str, group: dict[str, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    """Either matrix may be factorized; alpha is divided by the rank of a factor, if there is one."""
    rank = 0  # matrices stored in full are not scaled
    if "lokr_w1" in group:
        (w1,) = require_factors(name, group, "lokr_w1")
    else:
        a, b = require_factors(name, group, "lokr_w1_a", "lokr_w1_b")
        w1, rank = multiply_factors(name, a, b, shape), len(b)
    if "lokr_w2" in group:
        (w2,) = require_factors(name, group, "lokr_w2")
        a, b = factorize_dense(w2.float())
    else:
        a, b = require_factors(name, group, "lokr_w2_a", "lokr_w2_b")
        rank = len(b)
        if "lokr_t2" in group:
            (core,) = require_factors(name, group, "lokr_t2")
            a, b = expand_tucker(name, core, a, b, shape, (a.shape[-1], b.shape[-1]))
        a, b = a.float().flatten(1), b.float().flatten(1)
    size = shape[0], math.prod(shape[1:])
    if w1.ndim != 2 or a.shape[1] != len(b) or (len(w1) * len(a), w1.shape[1] * b.shape[1]) != size:
        raise ValueError(f"{name}: the shapes of the LoKr factors do not match")
    if w1.shape[1] * len(b) >= min(size):
        return *split_full_change(torch.kron(w1.float(), a @ b)), rank
    return *factorize_kronecker(w1.float(), a, b), rank


def multiply_factors(name: str, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != len(b) or len(a) > shape[0] or b.shape[1] > shape[1]:
        raise ValueError(f"{name}: the shapes of the LoKr factors do not match")
    return a.float() @ b.float()

"""Convert an adapter of any type to the equivalent plain LoRA, which every tool reads.

LoHa (Hyeon-Woo et al., 2022) multiplies two low-rank products elementwise, LoKr (Yeh et al., 2024) takes the Kronecker product
of a small and a low-rank matrix, PiSSA (Meng et al., 2024) starts from the largest singular vectors of the weight, so its
change is the product minus its initial value. All three are low-rank products of a higher rank.
"""

import torch
from torch import Tensor, nn

from sdft.lora.low_rank import LowRank


def compute_low_rank_updates(module: nn.Module, initial: dict[str, LowRank] | None = None) -> dict[str, LowRank]:
    """The change of each adapted layer in `module` by layer name, in fp32, minus the `initial` updates."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    return {name: compute_low_rank_update(layer, initial and initial[name]) for name, layer in layers.items()}


@torch.no_grad()
def compute_low_rank_update(layer: nn.Module, initial: LowRank | None = None) -> LowRank:
    """The exact change of one layer, minus the `initial` update."""
    adapter_type, scale = layer.adapter_layer_names[0].split("_")[0], layer.scaling["default"]
    up, down = {"lora": factorize_lora, "hada": factorize_loha, "lokr": factorize_lokr}[adapter_type](layer)
    up, down = (scale * up.float()).cpu(), down.float().to("cpu", copy=True)
    if initial is not None:
        up, down = torch.cat([up, -initial[0]], 1), torch.cat([down, initial[1]], 0)
    return cap_rank(up, down)


def cap_rank(up: Tensor, down: Tensor) -> LowRank:
    """Return the full change and an identity matrix if the rank is not below that of the weight."""
    if up.shape[1] < min(up.shape[0], down.shape[1]):
        return up, down
    return split_full_change(up @ down)


def split_full_change(change: Tensor) -> LowRank:
    """A full change `[out, in]` and an identity matrix."""
    identity = torch.eye(min(change.shape))
    return (change, identity) if change.shape[1] <= change.shape[0] else (identity, change)


def factorize_lora(layer) -> LowRank:
    return layer.lora_B["default"].weight.flatten(1), layer.lora_A["default"].weight.flatten(1)


def factorize_loha(layer) -> LowRank:
    a, b, c, d = (getattr(layer, f"hada_w{n}_{side}")["default"] for n in (1, 2) for side in "ab")
    return factorize_hadamard(a, b, c, d)


def factorize_hadamard(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> LowRank:
    """(a b) * (c d) is the product of all pairs of columns of a and c with all pairs of rows of b and d."""
    return torch.einsum("or,os->ors", a, c).flatten(1), torch.einsum("ri,si->rsi", b, d).flatten(0, 1)


def factorize_lokr(layer) -> LowRank:
    w = layer.lokr_w1["default"]
    if "default" in layer.lokr_w2:
        return factorize_kronecker(w, *factorize_dense(layer.lokr_w2["default"]))
    return factorize_kronecker(w, layer.lokr_w2_a["default"], layer.lokr_w2_b["default"])


def factorize_dense(matrix: Tensor) -> LowRank:
    """A full matrix as two trivial factors."""
    return torch.eye(len(matrix), device=matrix.device), matrix.flatten(1)


def factorize_kronecker(w: Tensor, a: Tensor, b: Tensor) -> LowRank:
    """w (x) (a b) = (w (x) a) (1 (x) b)."""
    return torch.kron(w, a), torch.kron(torch.eye(w.shape[1], device=w.device), b)

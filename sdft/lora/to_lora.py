"""Any adapter as the plain LoRA that changes every weight by the same amount, so that every tool opens it.

LoHa (Hyeon-Woo et al., 2022) multiplies two low-rank products element by element, LoKr (Yeh et al., 2024) takes the Kronecker
product of a small and a low-rank matrix, PiSSA (Meng et al., 2024) starts from the weight's own largest singular vectors, so
its change is the product less what it was at the start. All three are low-rank products again, of a higher rank.
"""

import torch
from torch import Tensor, nn

from sdft.lora.low_rank import LowRank


def compute_low_rank_updates(module: nn.Module, start: dict[str, LowRank] | None = None) -> dict[str, LowRank]:
    """The change of each adapted layer below `module`, by the layer's name, in fp32; `start` is subtracted."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    return {name: compute_low_rank_update(layer, start and start[name]) for name, layer in layers.items()}


@torch.no_grad()
def compute_low_rank_update(layer: nn.Module, start: LowRank | None = None) -> LowRank:
    """Exact."""
    kind, scale = layer.adapter_layer_names[0].split("_")[0], layer.scaling["default"]
    up, down = {"lora": factorize_lora, "hada": factorize_loha, "lokr": factorize_lokr}[kind](layer)
    up, down = (scale * up.float()).cpu(), down.float().to("cpu", copy=True)
    if start is not None:
        up, down = torch.cat([up, -start[0]], 1), torch.cat([down, start[1]], 0)
    return cap_rank(up, down)


def cap_rank(up: Tensor, down: Tensor) -> LowRank:
    """A rank as high as the weight's own is written as the whole change."""
    if up.shape[1] < min(up.shape[0], down.shape[1]):
        return up, down
    change = up @ down
    one = torch.eye(min(change.shape))
    return (change, one) if change.shape[1] <= change.shape[0] else (one, change)


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


def factorize_dense(whole: Tensor) -> LowRank:
    """A matrix that has no factors, as two."""
    return torch.eye(len(whole), device=whole.device), whole.flatten(1)


def factorize_kronecker(w: Tensor, a: Tensor, b: Tensor) -> LowRank:
    """w (x) (a b) = (w (x) a) (1 (x) b)."""
    return torch.kron(w, a), torch.kron(torch.eye(w.shape[1], device=w.device), b)

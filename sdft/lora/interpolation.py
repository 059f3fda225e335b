"""Interpolate two adapters in one model, in their weight changes or in their factors."""

import torch
from torch import Tensor, nn

from sdft.lora.scaling import find_adapter_layers, set_adapter_scales
from sdft.models.diffusion_model import DiffusionModel

INTERPOLATION_MODES = ("dw", "factors")


class AdapterInterpolator:
    """`dw`: W + (1 - t) dW0 + t dW1. `factors`: A = (1 - t) A0 + t A1, and B likewise.

    The two differ for 0 < t < 1: a product of means is not the mean of products. `names` are the adapters in `model`.
    """

    def __init__(self, model: DiffusionModel, names: list[str], mode: str = "dw"):
        self.model, self.names, self.mode = model, names, mode
        set_adapter_scales(model, dict.fromkeys(names, 1.0))
        self.factors = (
            [(layer, pair_factors(layer, names, name)) for name, layer in find_adapter_layers(model.unet).items()]
            if mode != "dw"
            else []
        )

    def interpolate_unet(self, t: float) -> None:
        """Set the UNet between the first adapter (0) and the second (1)."""
        if self.mode == "dw":
            self.set_scales(self.model.unet, [1 - t, t])
            return
        self.set_scales(self.model.unet, [1.0, 0.0])
        with torch.no_grad():
            for layer, factors in self.factors:
                for weights, (first, second) in zip((layer.lora_A, layer.lora_B), factors, strict=True):
                    weights[self.names[0]].weight.copy_((1 - t) * first + t * second)

    def select_text_encoder(self, index: int) -> None:
        """Give the text encoders the first (0) or the second (1) adapter."""
        for encoder in self.model.text_encoders.values():
            self.set_scales(encoder, [1.0 - index, float(index)])

    def disable(self) -> None:
        """Restore the base until the next `interpolate_unet` and `select_text_encoder`."""
        self.set_scales(self.model, [0.0, 0.0])

    def set_scales(self, module: nn.Module, weights: list[float]) -> None:
        set_adapter_scales(module, dict(zip(self.names, weights, strict=True)))


def pair_factors(layer: nn.Module, names: list[str], layer_name: str) -> list[tuple[Tensor, Tensor]]:
    """A and B of both adapters of one layer, at the scale of the first; `ValueError` if they cannot be interpolated."""
    first, second = names
    if any(name not in layer.lora_A for name in names):
        raise ValueError(f"lora=factors: only one adapter has {layer_name}; choose lora=dw")
    if layer.lora_A[first].weight.shape != layer.lora_A[second].weight.shape:
        ranks = " and ".join(str(layer.r[name]) for name in names)
        raise ValueError(f"lora=factors: the adapters have different ranks ({ranks}); choose lora=dw")
    if any(layer.use_dora.get(name) for name in names):
        raise ValueError("lora=factors: DoRA is not supported; choose lora=dw")
    ratio = layer.scaling[second] / layer.scaling[first]
    a, b = ([side[name].weight.detach().clone() for name in names] for side in (layer.lora_A, layer.lora_B))
    return [(a[0], a[1]), (b[0], ratio * b[1])]

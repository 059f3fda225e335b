"""Two adapters in one model, at any share of the way from one to the other: of what they change, or of their factors."""

import torch
from torch import Tensor, nn

from sdft.models.stable_diffusion import StableDiffusion

INTERPOLATION_MODES = ("dw", "factors")


class AdapterInterpolator:
    """`dw`: W + (1 - s) dW0 + s dW1, linear in what is changed. `factors`: A and B apart, (1 - s) A0 + s A1 and so on.

    The two differ between the ends: a product of means is not the mean of products. `names` are the adapters in `model`.
    """

    def __init__(self, model: StableDiffusion, names: list[str], kind: str = "dw"):
        self.names, self.kind = names, kind
        self.unet, self.text = find_lora_layers(model.unet), find_lora_layers(model.text_encoder)
        for layer in (*self.unet.values(), *self.text.values()):
            layer.set_adapter(names)
            layer.requires_grad_(False)  # peft lets what is active learn
        self.factors = (
            [(layer, pair_factors(layer, names, name)) for name, layer in self.unet.items()] if kind != "dw" else []
        )

    def interpolate_unet(self, share: float) -> None:
        """The UNet on the way from the first adapter (0) to the second (1)."""
        if self.kind == "dw":
            self.set_scales(self.unet, [1 - share, share])
            return
        self.set_scales(self.unet, [1.0, 0.0])
        with torch.no_grad():
            for layer, factors in self.factors:
                for weights, (one, other) in zip((layer.lora_A, layer.lora_B), factors, strict=True):
                    weights[self.names[0]].weight.copy_((1 - share) * one + share * other)

    def select_text_encoder(self, end: int) -> None:
        """The text encoder with the adapter of one end."""
        self.set_scales(self.text, [1.0 - end, float(end)])

    def disable(self) -> None:
        """The base, until the next `at` and `reading`."""
        self.set_scales(self.unet, [0.0, 0.0])
        self.set_scales(self.text, [0.0, 0.0])

    def set_scales(self, layers: dict[str, nn.Module], weights: list[float]) -> None:
        for layer in layers.values():
            for name, weight in zip(self.names, weights, strict=True):
                layer.set_scale(name, weight)


def find_lora_layers(module: nn.Module) -> dict[str, nn.Module]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def pair_factors(layer: nn.Module, names: list[str], where: str) -> list[tuple[Tensor, Tensor]]:
    """A and B of both adapters of one layer, at the strength of the first; `ValueError` where they cannot be paired."""
    one, other = names
    if any(name not in layer.lora_A for name in names):
        raise ValueError(f"lora=factors: {where} is in one adapter alone; choose lora=dw")
    if layer.lora_A[one].weight.shape != layer.lora_A[other].weight.shape:
        ranks = " and ".join(str(layer.r[name]) for name in names)
        raise ValueError(f"lora=factors: the adapters are of ranks {ranks}; choose lora=dw")
    if any(layer.use_dora.get(name) for name in names):
        raise ValueError("lora=factors: a DoRA is more than two factors; choose lora=dw")
    ratio = compute_lora_scale(layer, other) / compute_lora_scale(layer, one)
    a, b = ([side[name].weight.detach().clone() for name in names] for side in (layer.lora_A, layer.lora_B))
    return [(a[0], a[1]), (b[0], ratio * b[1])]


def compute_lora_scale(layer: nn.Module, name: str) -> float:
    """What a file's adapter is multiplied with at weight 1."""
    rank = layer.r[name]
    return layer.lora_alpha[name] / (rank**0.5 if layer.use_rslora.get(name) else rank)

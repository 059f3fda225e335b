"""DoRA magnitudes in LoRA files: norms of outputs (Liu et al., 2024; peft) or of inputs (LyCORIS before 3, OneTrainer)."""

import torch
from torch import Tensor

from sdft.lora.architecture import get_layer
from sdft.lora.low_rank import LowRankLayer, build_low_rank_layer
from sdft.lora.to_lora import split_full_change


def detect_input_norms(groups: dict[str, dict[str, Tensor]], shapes: dict[str, tuple[int, ...]]) -> bool | None:
    """Whether `dora_scale` holds norms of inputs: a property of the program that wrote the file. None if no layer tells.

    One row `[1, in]` or `[1, in, 1, 1]` holds norms of inputs, a column `[out, 1]` or a vector `[out]` those of outputs; peft's
    convolutions, renamed by converters, have rows `[1, out, 1, 1]`, too. Both fit a convolution with as many inputs as outputs.
    """
    evidence = set()
    for name, group in groups.items():
        if "dora_scale" not in group:
            continue
        magnitude, (out_size, in_size, *_) = group["dora_scale"], shapes[name]
        if not is_row(magnitude):
            evidence.add(False)
        elif magnitude.ndim == 2 or out_size != in_size:
            evidence.add(magnitude.numel() == in_size)
    return evidence.pop() if len(evidence) == 1 else None


def is_row(magnitude: Tensor) -> bool:
    return magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.numel() > 1


def parse_magnitude(
    name: str, group: dict[str, Tensor], shape: tuple[int, ...], input_norms: bool | None
) -> Tensor | None:
    """Magnitudes `[out]`, or `[1, in]` (a convolution's `[1, in, 1, 1]`) if they are norms of inputs."""
    magnitude = group.get("magnitude", group.get("dora_scale"))
    if magnitude is None:
        return None
    if "dora_scale" in group and is_row(magnitude):
        if input_norms is None:
            raise ValueError(
                f"{name}: dora_scale {list(magnitude.shape)} holds norms of inputs or of outputs, and no other layer tells; "
                "save it again with the program that made it, as norms of outputs"
            )
        if input_norms and magnitude.numel() == shape[1]:
            return magnitude.reshape(1, -1, *[1] * (len(shape) - 2))
    if magnitude.numel() != shape[0]:
        raise ValueError(f"{name}: magnitudes {list(magnitude.shape)} do not match {shape[0]} outputs")
    return magnitude.reshape(-1)


@torch.no_grad()
def expand_dora(part: str, network, layers: dict[str, LowRankLayer]) -> dict[str, LowRankLayer]:
    """Replace DoRA layers that peft cannot hold by the equivalent LoRA for the weights of `network`.

    These are layers with norms of inputs, and those of a part that also has plain LoRA layers. A strength scales their whole
    change, as in ComfyUI; in peft's DoRA it scales dW, and the magnitudes apply in full.
    """
    dora = {name: layer for name, layer in layers.items() if layer.magnitude is not None}
    if len(dora) == len(layers) and not any(layer.has_input_norms for layer in dora.values()):
        return layers
    expanded = dict(layers)
    for name, layer in dora.items():
        weight = get_layer(part, network, name).weight
        change = (layer.apply_to(weight) - weight.double()).float().cpu()
        expanded[name] = build_low_rank_layer(split_full_change(change.flatten(1)), layer.shape)
    return expanded

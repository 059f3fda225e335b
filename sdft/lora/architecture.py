"""Which layers a model has, of which shape: read from its configuration alone, without weights."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sdft.models.embedded import FOLDER

CLIP_ROOT = "text_model."  # what every LoRA file puts before the text encoder's layers
KOHYA_PREFIX = {"unet": "lora_unet", "text_encoder": "lora_te"}
Shapes = dict[str, dict[str, tuple[int, ...]]]  # by part and layer


@dataclass(frozen=True)
class Architecture:
    """`shapes` are of the weights that an adapter can change; the text encoder's layers begin with `text_model.`."""

    name: str
    shapes: Shapes

    def flat(self) -> dict[str, tuple[str, str]]:
        """Part and layer by the name that the kohya format writes, where dots are underscores."""
        return {
            f"{KOHYA_PREFIX[part]}_{layer.replace('.', '_')}": (part, layer)
            for part, layers in self.shapes.items()
            for layer in layers
        }


def shapes_of(part: str, module) -> dict[str, tuple[int, ...]]:
    """Of the linear layers and convolutions, below an adapter where they have one."""
    from torch import nn

    found = {}
    for name, layer in module.named_modules():
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        if isinstance(layer, nn.Linear | nn.Conv2d):
            found[named(part, name.removesuffix(".base_layer"))] = tuple(layer.weight.shape)
    return found


def named(part: str, layer: str) -> str:
    """What files call a layer."""
    return CLIP_ROOT + layer.removeprefix(CLIP_ROOT) if part == "text_encoder" else layer


def submodule(part: str, module, layer: str):
    """The layer of a network that a file means."""
    layer = layer.removeprefix(CLIP_ROOT)
    return module.get_submodule(
        CLIP_ROOT + layer if part == "text_encoder" and hasattr(module, "text_model") else layer
    )


def of_model(model) -> Architecture:
    return Architecture(model.name, {part: shapes_of(part, module) for part, module in model.parts.items()})


@cache
def of_folder(folder: Path, name: str) -> Architecture:
    """From the `config.json` files of a model's folder, on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    return Architecture(name, {"unet": shapes_of("unet", unet), "text_encoder": shapes_of("text_encoder", text)})


def known(asked: str | None = None) -> list[Architecture]:
    """The ones that this package carries, or the one that `asked` names: one of them, or a model's folder."""
    carried = {folder.parent.name: folder.parent for folder in sorted(FOLDER.glob("*/unet"))}
    if asked is None:
        return [of_folder(folder, name) for name, folder in carried.items()]
    folder = carried.get(asked, Path(asked).expanduser())
    if not all((folder / part / "config.json").is_file() for part in ("unet", "text_encoder")):
        raise ValueError(f"architecture={asked}: choose {', '.join(carried)}, or the folder of a model")
    return [of_folder(folder, asked)]

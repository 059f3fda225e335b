"""Which layers a model has, of which shape: read from its configuration alone, without weights."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sdft.models.embedded import ASSETS_FOLDER

TEXT_MODEL_PREFIX = "text_model."  # what every LoRA file puts before the text encoder's layers
KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
LayerShapes = dict[str, dict[str, tuple[int, ...]]]  # by part and layer


@dataclass(frozen=True)
class Architecture:
    """`shapes` are of the weights that an adapter can change; the text encoder's layers begin with `text_model.`."""

    name: str
    shapes: LayerShapes

    def index_by_kohya_name(self) -> dict[str, tuple[str, str]]:
        """Part and layer by the name that the kohya format writes, where dots are underscores."""
        return {
            f"{KOHYA_PREFIXES[part]}_{layer.replace('.', '_')}": (part, layer)
            for part, layers in self.shapes.items()
            for layer in layers
        }


def collect_layer_shapes(part: str, module) -> dict[str, tuple[int, ...]]:
    """Of the linear layers and convolutions, below an adapter where they have one."""
    from torch import nn

    found = {}
    for name, layer in module.named_modules():
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        if isinstance(layer, nn.Linear | nn.Conv2d):
            found[normalize_layer_name(part, name.removesuffix(".base_layer"))] = tuple(layer.weight.shape)
    return found


def normalize_layer_name(part: str, layer: str) -> str:
    """What files call a layer."""
    return TEXT_MODEL_PREFIX + layer.removeprefix(TEXT_MODEL_PREFIX) if part == "text_encoder" else layer


def get_layer(part: str, module, layer: str):
    """The layer of a network that a file means."""
    layer = layer.removeprefix(TEXT_MODEL_PREFIX)
    return module.get_submodule(
        TEXT_MODEL_PREFIX + layer if part == "text_encoder" and hasattr(module, "text_model") else layer
    )


def get_model_architecture(model) -> Architecture:
    return Architecture(model.name, {part: collect_layer_shapes(part, module) for part, module in model.parts.items()})


@cache
def read_architecture(folder: Path, name: str) -> Architecture:
    """From the `config.json` files of a model's folder, on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    return Architecture(
        name, {"unet": collect_layer_shapes("unet", unet), "text_encoder": collect_layer_shapes("text_encoder", text)}
    )


def list_architectures(asked: str | None = None) -> list[Architecture]:
    """The ones that this package carries, or the one that `asked` names: one of them, or a model's folder."""
    carried = {folder.parent.name: folder.parent for folder in sorted(ASSETS_FOLDER.glob("*/unet"))}
    if asked is None:
        return [read_architecture(folder, name) for name, folder in carried.items()]
    folder = carried.get(asked, Path(asked).expanduser())
    if not all((folder / part / "config.json").is_file() for part in ("unet", "text_encoder")):
        raise ValueError(f"architecture={asked}: choose {', '.join(carried)}, or the folder of a model")
    return [read_architecture(folder, asked)]

"""Layer names and weight shapes of a model, read from its config without loading weights."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sdft.models.embedded import ASSETS_FOLDER

TEXT_MODEL_PREFIX = "text_model."  # prefix of text encoder layers in every LoRA file
KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
LayerShapes = dict[str, dict[str, tuple[int, ...]]]  # by part and layer


@dataclass(frozen=True)
class Architecture:
    """`shapes` of the weights that an adapter can change; text encoder layers begin with `text_model.`."""

    name: str
    shapes: LayerShapes

    def index_by_kohya_name(self) -> dict[str, tuple[str, str]]:
        """Map kohya names, where dots are underscores, to (part, layer)."""
        return {
            f"{KOHYA_PREFIXES[part]}_{layer.replace('.', '_')}": (part, layer)
            for part, layers in self.shapes.items()
            for layer in layers
        }


def collect_layer_shapes(part: str, module) -> dict[str, tuple[int, ...]]:
    """Weight shapes of the linear and convolution layers, ignoring adapters."""
    from torch import nn

    shapes = {}
    for name, layer in module.named_modules():
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        if isinstance(layer, nn.Linear | nn.Conv2d):
            shapes[normalize_layer_name(part, name.removesuffix(".base_layer"))] = tuple(layer.weight.shape)
    return shapes


def normalize_layer_name(part: str, layer: str) -> str:
    """The name of a layer in LoRA files."""
    return TEXT_MODEL_PREFIX + layer.removeprefix(TEXT_MODEL_PREFIX) if part == "text_encoder" else layer


def get_layer(part: str, module, layer: str):
    """The submodule for a layer name from a LoRA file."""
    layer = layer.removeprefix(TEXT_MODEL_PREFIX)
    return module.get_submodule(
        TEXT_MODEL_PREFIX + layer if part == "text_encoder" and hasattr(module, "text_model") else layer
    )


def get_model_architecture(model) -> Architecture:
    return Architecture(model.name, {part: collect_layer_shapes(part, module) for part, module in model.parts.items()})


@cache
def read_architecture(folder: Path, name: str) -> Architecture:
    """Build the networks of a model folder from their `config.json` files on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    networks = {"unet": unet, "text_encoder": text_encoder}
    return Architecture(name, {part: collect_layer_shapes(part, network) for part, network in networks.items()})


def list_architectures(name: str | None = None) -> list[Architecture]:
    """All bundled architectures, or the one called `name`: a bundled one or a model folder."""
    bundled = {folder.parent.name: folder.parent for folder in sorted(ASSETS_FOLDER.glob("*/unet"))}
    if name is None:
        return [read_architecture(folder, key) for key, folder in bundled.items()]
    folder = bundled.get(name, Path(name).expanduser())
    if not all((folder / part / "config.json").is_file() for part in ("unet", "text_encoder")):
        raise ValueError(f"architecture={name}: choose {', '.join(bundled)}, or the folder of a model")
    return [read_architecture(folder, name)]

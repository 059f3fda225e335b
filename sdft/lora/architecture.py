"""Layer names and weight shapes of a model, read from its config without loading weights."""

from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.original_names import map_unet_layers, to_original_name

TEXT_MODEL_PREFIX = "text_model."  # prefix of text encoder layers in every LoRA file
KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
LayerShapes = dict[str, dict[str, tuple[int, ...]]]  # by part and layer


@dataclass(frozen=True)
class Architecture:
    """`shapes` of the weights that an adapter can change; text encoder layers begin with `text_model.`.

    `norms`: shapes of the weights of norms; `original_names`: pairs of (diffusers block, original block) of the UNet.
    """

    name: str
    shapes: LayerShapes
    norms: LayerShapes = field(default_factory=dict)
    original_names: tuple[tuple[str, str], ...] = ()

    @cached_property
    def index(self) -> dict[str, tuple[str, str]]:
        """Map layer names with underscores for dots to (part, layer): also original names, and those without `text_model.`."""
        index = {}
        for part, layers in self.shapes.items():
            for layer in [*layers, *self.norms.get(part, {})]:
                names = [layer, layer.removeprefix(TEXT_MODEL_PREFIX)]
                if part == "unet":
                    names.append(to_original_name(layer, self.original_names))
                index |= {name.replace(".", "_"): (part, layer) for name in names}
        return index

    def get_shape(self, part: str, layer: str) -> tuple[int, ...]:
        """The shape of the weight: of one dimension for a norm."""
        return self.shapes[part].get(layer) or self.norms[part][layer]


def build_architecture(name: str, parts: dict) -> Architecture:
    """The architecture of networks by part."""
    from torch import nn

    return Architecture(
        name,
        {part: collect_layer_shapes(part, module) for part, module in parts.items()},
        {part: collect_layer_shapes(part, module, (nn.GroupNorm, nn.LayerNorm)) for part, module in parts.items()},
        tuple(map_unet_layers(parts["unet"])),
    )


def collect_layer_shapes(part: str, module, layer_types: tuple[type, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Weight shapes of the layers of these types (default: linear and convolution layers), ignoring adapters."""
    from torch import nn

    shapes, layer_types = {}, layer_types or (nn.Linear, nn.Conv2d)
    for name, layer in module.named_modules():
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        if isinstance(layer, layer_types) and layer.weight is not None:
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
    return build_architecture(model.name, model.components)


@cache
def read_architecture(folder: Path, name: str) -> Architecture:
    """Build the networks of a model folder from their `config.json` files on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    return build_architecture(name, {"unet": unet, "text_encoder": text_encoder})


def list_architectures(name: str | None = None) -> list[Architecture]:
    """All bundled architectures, or the one called `name`: a bundled one or a model folder."""
    bundled = {folder.parent.name: folder.parent for folder in sorted(ASSETS_FOLDER.glob("*/unet"))}
    if name is None:
        return [read_architecture(folder, key) for key, folder in bundled.items()]
    folder = bundled.get(name, Path(name).expanduser())
    if not all((folder / part / "config.json").is_file() for part in ("unet", "text_encoder")):
        raise ValueError(f"architecture={name}: choose {', '.join(bundled)}, or the folder of a model")
    try:
        return [read_architecture(folder, name)]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"architecture={name}: not a model that can be built ({str(error).splitlines()[0]})") from None

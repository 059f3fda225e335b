"""Layer names and weight shapes of a model, read from its config without loading weights."""

from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from sdft.lora.families import (
    TEXT_ENCODER_CLASSES,
    LoraFamily,
    choose_family,
    is_text_encoder,
    normalize_layer_name,
)
from sdft.models.clip_text_model import TEXT_MODEL_PREFIX, TEXT_PROJECTION
from sdft.models.embedded import find_bundled_configs
from sdft.models.original_names import map_unet_layers, to_original_name
from sdft.runs.terminal import describe_error

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
    def index(self) -> dict[str, dict[str, str]]:
        """Layers by flat name, with underscores for dots, and part: also original names, and those without `text_model.`."""
        index: dict[str, dict[str, str]] = {}
        for part, layers in self.shapes.items():
            for layer in [*layers, *self.norms.get(part, {})]:
                names = {layer, layer.removeprefix(TEXT_MODEL_PREFIX), self.to_original_name(part, layer)}
                for name in names:
                    index.setdefault(name.replace(".", "_"), {})[part] = layer
        return index

    @cached_property
    def family(self) -> LoraFamily:
        widths = (shape[1] for layer, shape in self.shapes["unet"].items() if layer.endswith("attn2.to_k"))
        return choose_family(self.shapes, next(widths, None))

    @property
    def title(self) -> str:
        return self.family.name or self.name

    def to_original_name(self, part: str, layer: str) -> str:
        return to_original_name(layer, self.original_names) if part == "unet" else layer

    def get_kohya_name(self, part: str, layer: str) -> str | None:
        """kohya's name of a layer, such as `lora_te2_text_model_encoder_layers_0_mlp_fc1`; None if kohya never adapts it."""
        if is_text_encoder(part) and layer.startswith(TEXT_PROJECTION):
            return None
        name = self.to_original_name(part, layer) if self.family.has_original_names else layer
        return f"{self.family.kohya_prefixes[part]}_{name.replace('.', '_')}"

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


def get_layer(part: str, module, layer: str):
    """The submodule for a layer name from a LoRA file."""
    if is_text_encoder(part) and not hasattr(module, TEXT_MODEL_PREFIX.rstrip(".")):
        layer = layer.removeprefix(TEXT_MODEL_PREFIX)
    return module.get_submodule(layer)


def get_model_architecture(model) -> Architecture:
    return build_architecture(model.name, model.components)


@cache
def read_architecture(folder: Path, name: str) -> Architecture:
    """Build the networks of a model folder from their `config.json` files on the meta device."""
    import torch
    import transformers
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        parts = {"unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))}
        for part, network_class in TEXT_ENCODER_CLASSES.items():
            if (folder / part / "config.json").is_file():
                config = transformers.CLIPTextConfig.from_pretrained(folder / part)
                parts[part] = getattr(transformers, network_class)(config)
    return build_architecture(name, parts)


def list_architectures(name: str | None = None) -> list[Architecture]:
    """All bundled architectures, or the one called `name`: a bundled one or a model folder."""
    bundled = find_bundled_configs()
    if name is None:
        return [read_architecture(folder, key) for key, folder in bundled.items()]
    folder = bundled.get(name, Path(name).expanduser())
    if not all((folder / part / "config.json").is_file() for part in ("unet", "text_encoder")):
        raise ValueError(f"architecture={name}: choose {', '.join(bundled)}, or the folder of a model")
    try:
        return [read_architecture(folder, name)]
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"architecture={name}: not a model that can be built ({describe_error(error)})") from None

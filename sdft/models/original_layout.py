"""Where each weight lies in the original layout (Rombach et al., 2022), which keeps a model in one file.

The UNet numbers its down blocks and its up blocks in one list each, the autoencoder numbers its decoder blocks in reverse.
A text encoder has CLIP's names, or OpenCLIP's, with one matrix for query, key and value.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdft.models.clip_text_model import TEXT_MODEL_PREFIX
from sdft.models.original_names import map_unet_layers

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
VAE_ATTENTION_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_NAMES = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
OPEN_CLIP_BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class OriginalWeight:
    """A weight in the original layout: the `index`-th of `count` equal parts of the rows of `key`."""

    key: str
    index: int = 0
    count: int = 1
    is_convolution: bool = False  # a 1 x 1 convolution there, linear in diffusers
    is_transposed: bool = False  # a matrix that is multiplied from the right there

    def get_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape in the original layout of a weight of this `shape`."""
        if self.is_transposed:
            return tuple(shape)[::-1]
        return (shape[0] * self.count, *shape[1:]) + (1, 1) * self.is_convolution

    def accepts(self, shape: tuple[int, ...], expected: torch.Size) -> bool:
        """Whether a tensor of a file has the right shape; some tools store the convolutions as linear layers."""
        return shape == self.get_shape(expected) or (self.is_convolution and shape == tuple(expected))

    def read(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """A copy of the weight in fp32, from the tensor of a file."""
        weight = tensor.T if self.is_transposed else tensor.chunk(self.count)[self.index].reshape(shape)
        return torch.empty(shape, dtype=torch.float32).copy_(weight)

    def write(self, weight: Tensor) -> Tensor:
        """The weight in its shape in the original layout, except that it is not joined with other parts of the rows."""
        if self.is_transposed:
            return weight.T
        return weight[:, :, None, None] if self.is_convolution else weight


Places = dict[str, OriginalWeight]  # by key of a network's state dict


@dataclass(frozen=True)
class TextEncoderLayout:
    """The prefixes of a text encoder's keys, the first of which is written, and whether the names are OpenCLIP's."""

    prefixes: tuple[str, ...]
    is_open_clip: bool = False

    @property
    def token_embedding(self) -> str:
        """The key of the token embedding after the prefix."""
        return "token_embedding.weight" if self.is_open_clip else "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Layout:
    """The original layout of a family: its text encoders by part, the first of which is `min_text_width` wide or wider.

    `bases`: ModelSpec's name and the resolution of the published models by prediction type.
    """

    name: str
    bases: dict[str, tuple[str, int]]
    text_encoders: dict[str, TextEncoderLayout]
    min_text_width: int = 0
    prediction_type: str | None = None  # None: files do not tell

    @property
    def prediction_types(self) -> dict[str, str]:
        """The prediction type by ModelSpec's name, where the published models differ."""
        return {name: kind for kind, (name, _) in self.bases.items()} if len(self.bases) > 1 else {}

    def get_modelspec_name(self, prediction_type: str) -> str:
        name, _ = self.bases.get(prediction_type) or next(iter(self.bases.values()))
        return name


LAYOUTS = (  # the first that fits
    Layout(
        "Stable Diffusion XL",
        {"epsilon": ("stable-diffusion-xl-v1-base", 1024)},
        {
            "clip_l": TextEncoderLayout(("conditioner.embedders.0.transformer.text_model.",)),
            "clip_g": TextEncoderLayout(("conditioner.embedders.1.model.",), is_open_clip=True),
        },
        prediction_type="epsilon",
    ),
    Layout(
        "Stable Diffusion 2",
        {"epsilon": ("stable-diffusion-v2-512", 512), "v_prediction": ("stable-diffusion-v2-768-v", 768)},
        {"clip_l": TextEncoderLayout(("cond_stage_model.model.",), is_open_clip=True)},
        min_text_width=1024,
    ),
    Layout(
        "Stable Diffusion 1",
        {"epsilon": ("stable-diffusion-v1", 512)},
        {"clip_l": TextEncoderLayout(("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."))},
        prediction_type="epsilon",
    ),
)


def choose_layout(model) -> Layout:
    """The layout in which a model is written."""
    width = model.clip_l.config.hidden_size
    return next(
        layout
        for layout in LAYOUTS
        if layout.text_encoders.keys() == model.text_encoders.keys() and width >= layout.min_text_width
    )


def map_networks(
    model, layout: Layout, prefixes: dict[str, str] | None = None
) -> Iterator[tuple[str, nn.Module, Places]]:
    """Name, network and the places of all its weights; `prefixes` of the text encoders by part (default: those to write).

    `ValueError` for layers that the original layout lacks.
    """
    yield "unet", model.unet, map_places(model.unet, map_unet_layers(model.unet), UNET_PREFIX, "unet")
    yield "vae", model.vae, map_vae(model.vae, VAE_PREFIX)
    for part, text_layout in layout.text_encoders.items():
        network, prefix = model.text_encoders[part], (prefixes or {}).get(part, text_layout.prefixes[0])
        yield part, network, (map_open_clip if text_layout.is_open_clip else map_clip)(network, prefix)


def map_vae(vae: nn.Module, prefix: str) -> Places:
    layers = map_vae_layers(len(vae.config.block_out_channels), vae.config.layers_per_block)
    return map_places(vae, layers, prefix, "vae")


def map_places(network: nn.Module, layers: list[tuple[str, str]], prefix: str, part: str) -> Places:
    """The places of a network's weights, by the longest matching layer name in `layers`."""
    layers, places = sorted(layers, key=lambda pair: -len(pair[0])), {}
    for key, weight in network.state_dict().items():
        match = next((pair for pair in layers if key.startswith(pair[0] + ".")), None)
        if match is None:
            raise ValueError(f"{part}.{key}: the original layout has no such layer; save to a folder instead")
        original = prefix + match[1] + key.removeprefix(match[0])
        is_projection = ".attn_1." in original and key.endswith("weight") and weight.ndim == 2
        places[key] = OriginalWeight(original, is_convolution=is_projection)
    return places


def map_vae_layers(blocks: int, layers: int) -> list[tuple[str, str]]:
    """Pairs of (diffusers layer, original layer)."""
    pairs = [(name, name) for name in ("quant_conv", "post_quant_conv")]
    for side, direction, count in (("encoder", "down", layers), ("decoder", "up", layers + 1)):
        pairs += [(f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out")]
        pairs.append((f"{side}.conv_norm_out", f"{side}.norm_out"))
        for block in range(blocks):
            name = f"{side}.{direction}_blocks.{block}"
            original = f"{side}.{direction}.{block if side == 'encoder' else blocks - 1 - block}"
            for layer in range(count):
                pairs += [
                    (f"{name}.resnets.{layer}.conv_shortcut", f"{original}.block.{layer}.nin_shortcut"),
                    (f"{name}.resnets.{layer}", f"{original}.block.{layer}"),
                ]
            pairs.append((f"{name}.{direction}samplers.0.conv", f"{original}.{direction}sample.conv"))
        for layer in range(2):
            pairs.append((f"{side}.mid_block.resnets.{layer}", f"{side}.mid.block_{layer + 1}"))
        name, original = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        pairs += [(f"{name}.{key}", f"{original}.{original_key}") for key, original_key in VAE_ATTENTION_NAMES.items()]
    return pairs


def map_clip(text_encoder: nn.Module, prefix: str) -> Places:
    """The places of CLIP's weights; position ids are no weights."""
    keys = [key for key in text_encoder.state_dict() if not key.endswith("position_ids")]
    return {key: OriginalWeight(prefix + key.removeprefix(TEXT_MODEL_PREFIX)) for key in keys}


def map_open_clip(text_encoder: nn.Module, prefix: str) -> Places:
    """The places of OpenCLIP's weights; diffusers models of Stable Diffusion 2 omit its last layer, which is not used."""
    places = {}
    for key in text_encoder.state_dict():
        name = key.removeprefix(TEXT_MODEL_PREFIX)
        if name.startswith("encoder.layers."):
            _, _, number, layer = name.split(".", 3)
            block, (layer, _, kind) = f"{prefix}transformer.resblocks.{number}", layer.rpartition(".")
            if layer in OPEN_CLIP_BLOCK_NAMES:
                places[key] = OriginalWeight(f"{block}.{OPEN_CLIP_BLOCK_NAMES[layer]}.{kind}")
            else:
                index = "qkv".index(layer.removeprefix("self_attn.")[0])
                places[key] = OriginalWeight(f"{block}.attn.in_proj_{kind}", index, 3)
        elif name == "text_projection.weight":
            places[key] = OriginalWeight(prefix + "text_projection", is_transposed=True)
        elif match := next((old for old in OPEN_CLIP_NAMES if name.startswith(old)), None):
            places[key] = OriginalWeight(prefix + OPEN_CLIP_NAMES[match] + name.removeprefix(match))
    return places

"""Families of models in LoRA files: parts, kohya's names, and names of the base in metadata. A family is a row of `FAMILIES`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sdft.models.clip_text_model import add_text_model_prefix
from sdft.models.original_layout import LAYOUTS

TEXT_ENCODER_CLASSES = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
PARTS = ("unet", *TEXT_ENCODER_CLASSES)


@dataclass(frozen=True)
class LoraFamily:
    """`context_width`: inputs of the UNet's cross-attention. `kohya_prefixes` of layer names by part.

    `has_original_names`: kohya calls the layers of the UNet as in the original layout. `bases`: see `Layout`.
    """

    name: str | None
    context_width: int
    kohya_prefixes: dict[str, str]
    has_original_names: bool
    kohya_version: str | None
    bases: dict[str, tuple[str, int]]

    def build_metadata(self) -> dict[str, str]:
        """Header metadata of a LoRA by which tools recognise the base; without what several bases leave open."""
        metadata = {"ss_base_model_version": self.kohya_version} if self.kohya_version else {}
        if len(self.bases) == 1:
            ((name, resolution),) = self.bases.values()
            metadata |= {"modelspec.architecture": f"{name}/lora", "modelspec.resolution": f"{resolution}x{resolution}"}
        return metadata


SD_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
SDXL_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
BASES = {layout.name: layout.bases for layout in LAYOUTS}
FAMILIES = (
    LoraFamily("Stable Diffusion 1", 768, SD_PREFIXES, False, "sd_v1", BASES["Stable Diffusion 1"]),
    LoraFamily(
        "Stable Diffusion 2",
        1024,
        SD_PREFIXES,
        False,
        "sd_v2",
        BASES["Stable Diffusion 2"],
    ),
    LoraFamily(
        "Stable Diffusion XL",
        2048,
        SDXL_PREFIXES,
        True,
        "sdxl_base_v1-0",
        BASES["Stable Diffusion XL"],
    ),
)


def choose_family(parts: Iterable[str], context_width: int | None) -> LoraFamily:
    """The family with these parts and this width; a model of another width has the names of layers, but no name of a base."""
    rows = [row for row in FAMILIES if row.kohya_prefixes.keys() == set(parts)]
    published = [row for row in rows if row.context_width == context_width]
    return published[0] if published else replace(rows[0], name=None, kohya_version=None, bases={})


def get_modelspec_name(context_width: int, prediction_type: str) -> str:
    """ModelSpec's name of a base; unlisted ones are named by their width."""
    bases = next((row.bases for row in FAMILIES if row.context_width == context_width), {})
    name, _ = bases.get(prediction_type) or next(iter(bases.values()), (f"stable-diffusion-{context_width}", 0))
    return name


def get_kohya_version(modelspec_name: str | None) -> str | None:
    """kohya's name of a base by ModelSpec's; unlisted ones have the same."""
    versions = {name: row.kohya_version for row in FAMILIES for name, _ in row.bases.values()}
    return versions.get(modelspec_name, modelspec_name)


def is_text_encoder(part: str) -> bool:
    return part in TEXT_ENCODER_CLASSES


def normalize_layer_name(part: str, layer: str) -> str:
    """The name of a layer, or of one of its tensors, in LoRA files."""
    return add_text_model_prefix(layer) if is_text_encoder(part) else layer

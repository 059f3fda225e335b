"""Write and read Stable Diffusion in one file in the original layout (Rombach et al., 2022), which most tools use.

Reading inverts writing, weight by weight: equal bits, offline, and one copy in memory.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

import sdft.distributed as processes
from sdft.models.checkpoint_file import (
    EMPTY_CAPTION_KEY,
    FLOAT_TYPES,
    VELOCITY_MARKER,
    ZERO_TERMINAL_SNR_MARKER,
    CheckpointFile,
    format_key,
)
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.family import SUPPORTED
from sdft.models.original_layout import UNET_PREFIX, VAE_PREFIX, Places, choose_layout, map_networks
from sdft.models.precision import choose_part_dtype
from sdft.models.weight_sources import FileWeights, assign_weights
from sdft.runs.files import atomic_write
from sdft.runs.terminal import print_text

MODELSPEC_PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}
PART_NAMES = {"unet": "UNet", "vae": "autoencoder", "clip_l": "text encoder", "clip_g": "second text encoder"}
EMA_PREFIX = "model_ema."
UNUSED_KEYS = re.compile(  # noise levels and markers, projections, OpenCLIP's last layer, the autoencoder's loss
    r"^(\w*alphas_cumprod(_prev)?|betas|posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas|v_pred|ztsnr)$|"
    r"\.(position_ids|logit_scale|text_projection(\.weight)?|attn_mask)$|"
    r"^cond_stage_model\.model\.transformer\.resblocks\.23\.|^first_stage_model\.(loss|model_ema)\."
)


def save_single_file(model: DiffusionModel, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    tensors = {key: weight.detach().cpu().to(dtype).contiguous() for key, weight in to_original_layout(model).items()}
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": choose_layout(model).get_modelspec_name(model.prediction_type),
        "modelspec.prediction_type": MODELSPEC_PREDICTION_TYPES[model.prediction_type],
    }
    if resolution := model.checkpoint_resolution:
        header["modelspec.resolution"] = f"{resolution}x{resolution}"
    if model.empty_caption:
        header[EMPTY_CAPTION_KEY] = model.empty_caption
    with atomic_write(path) as file:
        save_file(tensors | build_markers(model), file, metadata=header | metadata)


def build_markers(model: DiffusionModel) -> dict[str, Tensor]:
    """Empty tensors that tell other tools of velocity prediction, where they expect noise, and of zero terminal SNR."""
    has_unexpected_velocity = "epsilon" == choose_layout(model).prediction_type != model.prediction_type
    markers = {
        VELOCITY_MARKER: has_unexpected_velocity,
        ZERO_TERMINAL_SNR_MARKER: model.noise_process.has_zero_terminal_snr,
    }
    return {key: torch.empty(0) for key, is_needed in markers.items() if is_needed}


def to_original_layout(model: DiffusionModel) -> dict[str, Tensor]:
    """All weights under their original names; `ValueError` for layers that the original layout lacks."""
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for _, network, places in map_networks(model, choose_layout(model)):
        weights = network.state_dict()
        for key, place in places.items():
            parts[place.key][place.index] = place.write(weights[key])
    return {
        key: torch.cat([rows[i] for i in range(len(rows))]) if len(rows) > 1 else rows[0] for key, rows in parts.items()
    }


def load_weights(model: DiffusionModel, file: CheckpointFile, parts_to_skip: tuple[str, ...] = ()) -> None:
    """Fill the networks of `model`, built on the meta device, with copies of a file's weights in the chosen precision.

    `ValueError` unless the file has each weight of each network in its shape, and no other layers of them.
    """
    networks = match_networks(model, file, parts_to_skip)
    list_unread_tensors(file, {place.key for *_, places in networks for place in places.values()}, parts_to_skip)
    for part, network, places in networks:
        source = FileWeights({key: (file.path, place) for key, place in places.items()})
        assign_weights(network, source, choose_part_dtype(part))


def match_networks(
    model: DiffusionModel, file: CheckpointFile, parts_to_skip: tuple[str, ...]
) -> list[tuple[str, nn.Module, Places]]:
    """The networks to load with the places of their weights, all of which the file has in their shape, else `ValueError`."""
    layout, prefixes = file.layout
    networks = [row for row in map_networks(model, layout, prefixes) if row[0] not in parts_to_skip]
    for part, network, places in networks:
        check_weights(file, part, {key: weight.shape for key, weight in network.state_dict().items()}, places)
    return networks


def check_weights(file: CheckpointFile, part: str, shapes: dict[str, torch.Size], places: Places) -> None:
    """`ValueError` for weights of a network that the file lacks, or has in another shape or as integers."""
    if missing := [place.key for place in places.values() if place.key not in file.shapes]:
        if len(missing) == len(places):
            raise file.error(f"has no {PART_NAMES[part]}" + "; give model.vae=FOLDER or FILE" * (part == "vae"))
        count = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise file.error(f"lacks {missing[0]}{count}; the file is incomplete, or of another model")
    for key, place in places.items():
        if not place.accepts(file.shapes[place.key], shapes[key]):
            expected = list(place.get_shape(shapes[key]))
            raise file.error(f"{place.key} has the shape {list(file.shapes[place.key])} instead of {expected}")
        if file.types[place.key] not in FLOAT_TYPES:
            raise file.error(f"{place.key} is {file.types[place.key]}; quantized weights are not supported")


def list_unread_tensors(file: CheckpointFile, read: set[str], parts_to_skip: tuple[str, ...]) -> None:
    """Warn of tensors that are not read, except those that every file may have; `ValueError` for other layers of a network."""
    unread = [key for key in file.shapes if key not in read and not UNUSED_KEYS.search(key)]
    if "vae" in parts_to_skip:
        unread = [key for key in unread if not key.startswith(VAE_PREFIX)]
    if layers := [key for key in unread if key.startswith((UNET_PREFIX, VAE_PREFIX))]:
        raise file.error(f"has the layer {format_key(layers[0])}, which the model that it resembles lacks; {SUPPORTED}")
    for label, keys in (
        ("EMA weights", [key for key in unread if key.startswith(EMA_PREFIX)]),
        ("unknown tensors", [key for key in unread if not key.startswith(EMA_PREFIX)]),
    ):
        if keys and processes.rank() == 0:
            message = f"{len(keys)} {label} are not read, such as {format_key(min(keys))}"
            print_text(f"warning    {file.option}={file.path}: {message}", file=sys.stderr)

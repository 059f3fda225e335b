"""Tensor names in LoRA files: diffusers (peft and its predecessor), kohya and LyCORIS."""

import math
import re

from torch import Tensor

from sdft.lora.architecture import TEXT_MODEL_PREFIX, Architecture

ROLE_BY_SUFFIX = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    **{role: role for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    **{role: role for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
}
SUFFIXES = sorted(ROLE_BY_SUFFIX, key=len, reverse=True)
FILE_ADAPTER_TYPES = ["lora", "locon", "loha", "lokr"]
UNSUPPORTED_SUFFIXES = {  # suffixes of adapters that are not low-rank products, with a description
    r"hada_t[12]|lokr_t2": "LoHa or LoKr in Tucker form",
    r"diff|diff_b|w_norm|b_norm|lora_[AB]\.bias|lora_(up|down)\.bias": "changes of full weights, norms or biases",
    r"oft_.*|oft_blocks|boft_.*": "OFT",
    r"on_input|scalar": "IA3 or a LyCORIS scalar",
    r"glora_.*|[ab][12]\.weight": "GLoRA",
}
SDXL_KEY = re.compile(r"lora_te[12]_|text_encoder_2\.|lora_unet_(input_blocks|output_blocks|middle_block)_")
LEGACY_DIFFUSERS_KEY = re.compile(
    r"\.(?:processor\.)?(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$"
)  # diffusers until 0.2x
CLIP_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def group_tensors(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Group tensors by layer name (as in the file) and role; also return the format. `ValueError` if not a LoRA."""
    if not tensors:
        raise ValueError("contains no tensors")
    formats = {"kohya" if key.startswith("lora_") else "diffusers" for key in tensors}
    if len(formats) > 1:
        raise ValueError(f"mixes the kohya and the diffusers format ({min(tensors)}, {max(tensors)})")
    groups: dict[str, dict[str, Tensor]] = {}
    for key in sorted(tensors):
        name, role = parse_tensor_name(key)
        if not tensors[key].is_floating_point():
            raise ValueError(f"{key} has dtype {tensors[key].dtype}; weights must be floating-point")
        group = groups.setdefault(name, {})
        if role in group:
            raise ValueError(f"{key}: duplicate tensor")
        group[role] = tensors[key]
    return groups, formats.pop()


def parse_tensor_name(key: str) -> tuple[str, str]:
    """`LAYER.lora_A.weight` to (`LAYER`, `down`)."""
    if SDXL_KEY.match(key):
        raise ValueError(f"is for Stable Diffusion XL ({key}); only Stable Diffusion 1 and 2 are supported")
    if match := LEGACY_DIFFUSERS_KEY.search(key):
        layer, (name, side) = key[: match.start()], match.groups()
        name = CLIP_PROJECTIONS[name] if "text_model" in layer or layer.startswith("text_encoder.") else name
        return f"{layer}.{'to_out.0' if name == 'to_out' else name}", side
    for suffix in SUFFIXES:
        if key.endswith(f".{suffix}"):
            return key.removesuffix(f".{suffix}"), ROLE_BY_SUFFIX[suffix]
    for pattern, description in UNSUPPORTED_SUFFIXES.items():
        if re.search(rf"\.({pattern})$", key):
            raise ValueError(f"contains {description} ({key}), which is not a low-rank product of two factors")
    raise ValueError(f"{key} is not a LoRA tensor")


def detect_adapter_type(group: dict[str, Tensor]) -> str:
    if any(role.startswith("hada") for role in group):
        return "loha"
    if any(role.startswith("lokr") for role in group):
        return "lokr"
    return "locon" if "mid" in group else "lora"


def match_architecture(
    groups: dict, file_format: str, architectures: list[Architecture]
) -> tuple[Architecture, dict[str, tuple[str, str]]]:
    """The first architecture that has all layers with matching shapes, and (part, layer) by name in the file."""
    mismatches = []
    for architecture in architectures:
        index = architecture.index_by_kohya_name() if file_format == "kohya" else index_by_diffusers_name(architecture)
        unmatched = [name for name in groups if name not in index]
        misshapen = [
            name
            for name in groups
            if name in index and not fits_shape(groups[name], get_layer_shape(architecture, index[name]))
        ]
        if not unmatched and not misshapen:
            return architecture, {name: index[name] for name in groups}
        mismatches.append((len(unmatched) + len(misshapen), unmatched, misshapen))
    _, unmatched, misshapen = min(mismatches, key=lambda mismatch: mismatch[0])
    layers, candidates = unmatched or misshapen, " or ".join(architecture.name for architecture in architectures)
    first = f"{layers[0]} and {len(layers) - 1} more" if len(layers) > 1 else layers[0]
    if unmatched:
        raise ValueError(f"{first}: fits no layer of {candidates}")
    raise ValueError(f"does not fit {candidates}: {first} has the wrong shape for its layer")


def index_by_diffusers_name(architecture: Architecture) -> dict[str, tuple[str, str]]:
    """Map diffusers names, with and without `text_model.`, to (part, layer)."""
    pairs = [(part, layer) for part, layers in architecture.shapes.items() for layer in layers]
    bare = {f"{part}.{layer.removeprefix(TEXT_MODEL_PREFIX)}": (part, layer) for part, layer in pairs}
    return bare | {f"{part}.{layer}": (part, layer) for part, layer in pairs}


def get_layer_shape(architecture: Architecture, key: tuple[str, str]) -> tuple[int, ...]:
    return architecture.shapes[key[0]][key[1]]


def fits_shape(group: dict[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether the factors match a weight of this shape; missing factors are reported by `require_factors`."""
    out_size, in_size = shape[0], math.prod(shape[1:])
    if detect_adapter_type(group) == "lokr":
        small, large = (get_matrix_size(group, f"lokr_w{n}", f"lokr_w{n}_a", f"lokr_w{n}_b") for n in (1, 2))
        return small[0] * large[0] in (0, out_size) and small[1] * large[1] in (0, in_size)
    pairs = [("up", "down"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")]
    sizes = [get_matrix_size(group, "", *pair) for pair in pairs]
    return all(rows in (0, out_size) and (columns in (0, in_size) or "mid" in group) for rows, columns in sizes)


def get_matrix_size(group: dict[str, Tensor], matrix: str, up: str, down: str) -> tuple[int, int]:
    """Rows and columns of a matrix, stored in full or as two factors; 0 if absent."""
    rows, columns = group.get(matrix, group.get(up)), group.get(matrix, group.get(down))
    return (
        len(rows) if rows is not None and rows.ndim else 0,
        columns.numel() // max(1, len(columns)) if columns is not None and columns.ndim else 0,
    )

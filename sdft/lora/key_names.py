"""How LoRA files name their tensors: diffusers' ways (peft's now, its own before), kohya's and LyCORIS's."""

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
UNSUPPORTED_SUFFIXES = {  # endings that are no low-rank factors, by what they are
    r"hada_t[12]|lokr_t2": "a LoHa or LoKr in Tucker form",
    r"diff|diff_b|w_norm|b_norm|lora_[AB]\.bias|lora_(up|down)\.bias": "changes of whole weights, norms or biases",
    r"oft_.*|oft_blocks|boft_.*": "an OFT",
    r"on_input|scalar": "an IA3 or LyCORIS scalar",
    r"glora_.*|[ab][12]\.weight": "a GLoRA",
}
SDXL_KEY = re.compile(r"lora_te[12]_|text_encoder_2\.|lora_unet_(input_blocks|output_blocks|middle_block)_")
LEGACY_DIFFUSERS_KEY = re.compile(
    r"\.(?:processor\.)?(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$"
)  # diffusers until 0.2x
CLIP_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def group_tensors(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], str]:
    """Tensors by the layer's name as it is written and their role, and the format; `ValueError` for what is no LoRA's."""
    if not tensors:
        raise ValueError("no tensors in it")
    forms = {"kohya" if key.startswith("lora_") else "diffusers" for key in tensors}
    if len(forms) > 1:
        raise ValueError(f"both of the kohya and of the diffusers format ({min(tensors)}, {max(tensors)})")
    groups: dict[str, dict[str, Tensor]] = {}
    for key in sorted(tensors):
        name, role = parse_tensor_name(key)
        if not tensors[key].is_floating_point():
            raise ValueError(f"{key} holds {tensors[key].dtype}, no weights")
        group = groups.setdefault(name, {})
        if role in group:
            raise ValueError(f"{key} is there twice")
        group[role] = tensors[key]
    return groups, forms.pop()


def parse_tensor_name(key: str) -> tuple[str, str]:
    """`LAYER.lora_A.weight` to (`LAYER`, `down`)."""
    if SDXL_KEY.match(key):
        raise ValueError(f"of Stable Diffusion XL ({key}); this reads LoRA files of Stable Diffusion 1 and 2")
    if old := LEGACY_DIFFUSERS_KEY.search(key):
        layer, (name, side) = key[: old.start()], old.groups()
        name = CLIP_PROJECTIONS[name] if "text_model" in layer or layer.startswith("text_encoder.") else name
        return f"{layer}.{'to_out.0' if name == 'to_out' else name}", side
    for ending in SUFFIXES:
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}"), ROLE_BY_SUFFIX[ending]
    for pattern, what in UNSUPPORTED_SUFFIXES.items():
        if re.search(rf"\.({pattern})$", key):
            raise ValueError(f"{what} ({key}), which is no low-rank product of two factors")
    raise ValueError(f"{key} is no tensor of a LoRA")


def detect_adapter_type(group: dict[str, Tensor]) -> str:
    if any(role.startswith("hada") for role in group):
        return "loha"
    if any(role.startswith("lokr") for role in group):
        return "lokr"
    return "locon" if "mid" in group else "lora"


def match_architecture(
    groups: dict, form: str, among: list[Architecture]
) -> tuple[Architecture, dict[str, tuple[str, str]]]:
    """The first architecture that has all the layers, of the right shapes, and part and layer by written name."""
    told = []
    for architecture in among:
        places = architecture.index_by_kohya_name() if form == "kohya" else index_by_diffusers_name(architecture)
        unknown = [name for name in groups if name not in places]
        wrong = [
            name
            for name in groups
            if name in places and not fits_shape(groups[name], get_layer_shape(architecture, places[name]))
        ]
        if not unknown and not wrong:
            return architecture, {name: places[name] for name in groups}
        told.append((len(unknown) + len(wrong), architecture, unknown, wrong, places))
    _, architecture, unknown, wrong, places = min(told, key=lambda one: one[0])
    bad = (unknown or wrong)[0]
    more = f" and {len(unknown or wrong) - 1} more" if len(unknown or wrong) > 1 else ""
    if unknown:
        raise ValueError(f"{bad}{more} fits no layer of {' or '.join(a.name for a in among)}")
    raise ValueError(
        f"does not fit {' or '.join(a.name for a in among)}: {bad}{more} has not the shape of its layer there"
    )


def index_by_diffusers_name(architecture: Architecture) -> dict[str, tuple[str, str]]:
    """Part and layer by the names of the diffusers format, with and without the text encoder's root."""
    pairs = [(part, layer) for part, layers in architecture.shapes.items() for layer in layers]
    bare = {f"{part}.{layer.removeprefix(TEXT_MODEL_PREFIX)}": (part, layer) for part, layer in pairs}
    return bare | {f"{part}.{layer}": (part, layer) for part, layer in pairs}


def get_layer_shape(architecture: Architecture, place: tuple[str, str]) -> tuple[int, ...]:
    return architecture.shapes[place[0]][place[1]]


def fits_shape(group: dict[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether the factors that are there can change a weight of that shape; which of them are there is asked elsewhere."""
    out, into = shape[0], math.prod(shape[1:])
    if detect_adapter_type(group) == "lokr":
        small, large = (get_matrix_size(group, f"lokr_w{n}", f"lokr_w{n}_a", f"lokr_w{n}_b") for n in (1, 2))
        return small[0] * large[0] in (0, out) and small[1] * large[1] in (0, into)
    pairs = [("up", "down"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")]
    found = [get_matrix_size(group, "", *pair) for pair in pairs]
    return all(rows in (0, out) and (columns in (0, into) or "mid" in group) for rows, columns in found)


def get_matrix_size(group: dict[str, Tensor], whole: str, up: str, down: str) -> tuple[int, int]:
    """Rows and columns of a matrix that is there whole or as two factors; 0 for what is not there."""
    rows, columns = group.get(whole, group.get(up)), group.get(whole, group.get(down))
    return (
        len(rows) if rows is not None and rows.ndim else 0,
        columns.numel() // max(1, len(columns)) if columns is not None and columns.ndim else 0,
    )

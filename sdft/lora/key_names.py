"""Tensor names in LoRA files: tables of what programs call layers and tensors, and their canonical names.

A layer's canonical name is diffusers' (text encoders: with `text_model.`). A new naming scheme is a row of `PREFIXES`.
"""

import re

from torch import Tensor

WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")  # peft, DistributedDataParallel, torch.compile
PREFIXES = (  # of layer names, and their part; None: the layer's own name tells the part
    ("lora_unet_", "unet"),  # kohya, LyCORIS, OneTrainer
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),  # kohya's name in SDXL; diffusers' converter and OneTrainer use it for SD 1, too
    ("lora_te2_", "text_encoder_2"),
    ("lycoris_", None),  # LyCORIS without kohya, SimpleTuner
    ("unet.", "unet"),  # diffusers; OMI with original layer names
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("model.diffusion_model.", "unet"),  # ComfyUI, with original layer names
    ("diffusion_model.", "unet"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("clip_l.transformer.", "text_encoder"),
    ("clip_g.transformer.", "text_encoder_2"),
    ("clip_l.", "text_encoder"),  # OMI
    ("clip_g.", "text_encoder_2"),
    ("", None),  # peft, diffusers before 0.17
)
ROLE_BY_SUFFIX = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A": "down",
    "lora_B": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "scalar": "scalar",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    **{role: role for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{role: role for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    **{role: role for role in ("diff", "diff_b", "w_norm", "b_norm")},
}
SUFFIXES = sorted(ROLE_BY_SUFFIX, key=len, reverse=True)
SCALAR_ROLES = ("alpha", "scalar")
OFFSET_ROLES = ("diff_b", "w_norm", "b_norm")  # changes of biases and norms, which are no matrices
BUNDLED_PREFIX = "bundle_emb."  # OneTrainer's embeddings beside the LoRA
UNSUPPORTED_SUFFIXES = {  # suffixes of adapters that are not read, with a description
    r"oft_.*|boft_.*|rescale": "OFT, which rotates the base weights",
    r"on_input": "IA3, which multiplies the base weights",
    r"[ab][12]\.weight|bm\.weight": "GLoRA, which multiplies the base weights",
    r"lora_[AB]\.bias|lora_(up|down)\.bias": "biases of LoRA factors",
    r"lora_embedding_[AB]|emb_params": "changes of token embeddings",
}
LEGACY_SUFFIX = re.compile(r"\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")  # diffusers before peft
PEFT_ADAPTER_NAME = re.compile(
    r"\.(lora_[AB]|lora_magnitude_vector|hada_\w+?|lokr_\w+?)\.(?!weight$|bias$)\w+(\.weight)?$"
)
CLIP_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
Groups = dict[str, dict[str, Tensor]]  # tensors by layer name, as in the file, and role


def group_tensors(tensors: dict[str, Tensor]) -> tuple[Groups, str]:
    """Group tensors by layer name (as in the file) and role; also return the format. `ValueError` if not a LoRA."""
    if not tensors:
        raise ValueError("contains no tensors")
    formats = {detect_format(key) for key in tensors}
    if len(formats) > 1:
        raise ValueError(
            f"mixes the {' and the '.join(sorted(formats, reverse=True))} format ({min(tensors)}, {max(tensors)})"
        )
    if unknown := [key for key in tensors if parse_tensor_name(key) is None]:
        raise ValueError(describe_unknown_tensors(unknown))
    groups: Groups = {}
    for key in sorted(tensors):
        name, role = parse_tensor_name(key)
        if not tensors[key].is_floating_point() and role not in SCALAR_ROLES:
            raise ValueError(f"{key} has dtype {tensors[key].dtype}; weights must be floating-point")
        group = groups.setdefault(name, {})
        if role in group:
            raise ValueError(f"{key}: duplicate tensor")
        group[role] = tensors[key]
    return groups, formats.pop()


def detect_format(key: str) -> str:
    if key.startswith(("lora_", "lycoris_")):
        return "kohya"
    return "peft" if key.startswith("base_model.model.") else "diffusers"


def parse_tensor_name(key: str) -> tuple[str, str] | None:
    """`LAYER.lora_A.weight` to (`LAYER`, `down`); None for a tensor that is not of an adapter."""
    key = PEFT_ADAPTER_NAME.sub(r".\1\2", key)
    if match := LEGACY_SUFFIX.search(key):
        layer, (name, side) = key[: match.start()], match.groups()
        return f"{layer}.{CLIP_PROJECTIONS[name] if layer.endswith('self_attn') else name}", side
    for suffix in SUFFIXES:
        if key.endswith(f".{suffix}"):
            return key.removesuffix(f".{suffix}"), ROLE_BY_SUFFIX[suffix]
    return None


def describe_unknown_tensors(keys: list[str]) -> str:
    for pattern, description in UNSUPPORTED_SUFFIXES.items():
        for key in keys:
            if re.search(rf"\.({pattern})$", key):
                return f"contains {description} ({key}); LoRA, LoHa, LoKr, DoRA and full changes are supported"
    return f"{keys[0]}{f' and {len(keys) - 1} more' * (len(keys) > 1)}: not LoRA tensors"


def find_layers(index: dict[str, dict[str, str]], name: str) -> list[tuple[str, str]]:
    """The (part, canonical layer) that a layer name in a file may mean; `index` is `Architecture.index`.

    Names without a prefix mean several layers where two text encoders have equal ones; their shapes decide.
    """
    while wrapper := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), None):
        name = name.removeprefix(wrapper)
    name = name.replace(".processor.", ".")
    for prefix, part in PREFIXES:
        if name.startswith(prefix):
            flat = name.removeprefix(prefix).replace(".", "_")
            layers = index.get(flat, index.get(f"{flat}_0", {}))  # diffusers calls `to_out.0` also `to_out`
            if found := [key for key in layers.items() if part in (None, key[0])]:
                return found
    return []

"""The alpha of peft's factors: from `adapter_config.json` beside peft's own file, or from the header of a diffusers file."""

import json
import math
from pathlib import Path

from sdft.lora.families import PARTS
from sdft.models.clip_text_model import TEXT_MODEL_PREFIX
from sdft.runs.files import read_json

PEFT_CONFIG_KEY = "lora_adapter_metadata"  # header key of the peft config in diffusers files
PEFT_FILE, PEFT_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PEFT_TYPES = (None, "LORA", "LOHA", "LOKR")
BASE_CHANGING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")  # they also change the base weights
UNSUPPORTED_OPTIONS = ("layer_replication", "use_qalora", "alora_invocation_tokens")


def read_peft_alphas(path: Path, metadata: dict[str, str], file_format: str) -> dict:
    """Map each part to a function of (layer, rank) that returns alpha and the rank that divides it."""
    if file_format == "peft":
        config = read_json(path.with_name(PEFT_CONFIG_FILE))
        lookup = build_alpha_lookup(config, PEFT_CONFIG_FILE) if config else None
        return dict.fromkeys(PARTS, lookup) if lookup else {}
    if PEFT_CONFIG_KEY not in metadata:
        return {}
    try:
        settings = json.loads(metadata[PEFT_CONFIG_KEY])
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"metadata key {PEFT_CONFIG_KEY} is not a JSON object")
    configs: dict[str, dict] = {key.split(".")[0]: {} for key in settings}
    for key, value in settings.items():
        part, _, name = key.partition(".")
        configs[part][name] = value
    source = f"metadata key {PEFT_CONFIG_KEY}"
    return {part: build_alpha_lookup(config, source) for part, config in configs.items()}


def build_alpha_lookup(config: dict, source: str):
    """peft's rule: `alpha_pattern` by the layer name's suffix, else `lora_alpha`; times sqrt(rank) if rank-stabilized.

    LoHa and LoKr call it `alpha`; LoKr divides also full matrices by the rank of its config.
    """
    check_peft_config(config, source)
    alphas = config.get("alpha_pattern") or {}, config.get("lora_alpha", config.get("alpha"))
    ranks = config.get("rank_pattern") or {}, config.get("r")
    for name, (patterns, default) in (("alpha", alphas), ("rank", ranks)):
        values = [
            *(patterns.values() if isinstance(patterns, dict) else [None]),
            *([] if default is None else [default]),
        ]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
            raise ValueError(f"{source} has {name} values that are not finite numbers")
        if invalid := [
            key for key in patterns if not key.removeprefix("^").replace(".", "").replace("_", "").isalnum()
        ]:
            raise ValueError(f"{source}: {name}_pattern {invalid[0][:80]!r} is not a layer name")

    def get_value(patterns: dict, default: float | None, layer: str) -> float | None:
        bare = layer.removeprefix(TEXT_MODEL_PREFIX)
        matches = [key for key in patterns if key in (layer, f"^{layer}", f"^{bare}") or layer.endswith(f".{key}")]
        return patterns[matches[0]] if matches else default

    def get_alpha(layer: str, rank: int) -> tuple[float | None, int]:
        rank, value = rank or get_value(*ranks, layer) or 0, get_value(*alphas, layer)
        if value is None:
            return None, rank
        return float(value) * (math.sqrt(rank) if config.get("use_rslora") else 1), rank

    return get_alpha


def check_peft_config(config: dict, source: str) -> None:
    """`ValueError` for options with which the factors alone do not define the change."""
    if config.get("peft_type") not in PEFT_TYPES:
        raise ValueError(
            f"{source}: peft_type {str(config['peft_type'])[:40]} is not supported; LORA, LOHA and LOKR are"
        )
    init = str(config.get("init_lora_weights")).lower()
    if init.startswith(BASE_CHANGING_INITS):
        raise ValueError(
            f"{source}: init_lora_weights={init[:40]} changed the base weights, too; save it with peft's "
            "path_initial_model_for_weight_conversion"
        )
    if options := [key for key in UNSUPPORTED_OPTIONS if config.get(key)]:
        raise ValueError(f"{source}: {options[0]} is not supported")

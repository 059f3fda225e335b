"""Summarize a LoRA file in lines: format, ranks, norms of the changes by block, and header metadata."""

import json
from collections import Counter

from sdft.lora.families import is_text_encoder
from sdft.lora.file import LoraFile
from sdft.lora.low_rank import compute_energy
from sdft.lora.peft_config import PEFT_CONFIG_KEY
from sdft.runs.terminal import escape_unprintable

BAR_WIDTH = 24  # characters of the longest bar
MAX_VALUE_LENGTH = 96  # characters of a metadata value
MAIN_METADATA_KEYS = (  # listed without all=true
    "modelspec.title",
    "modelspec.architecture",
    "modelspec.author",
    "modelspec.license",
    "modelspec.trigger_phrase",
    "ss_output_name",
    "ss_sd_model_name",
    "ss_base_model_version",
    "ss_num_train_images",
    "ss_num_epochs",
    "ss_steps",
    "ss_learning_rate",
    "ss_unet_lr",
    "ss_text_encoder_lr",
    "ss_optimizer",
    "ss_lr_scheduler",
    "ss_resolution",
    "ss_noise_offset",
    "ss_min_snr_gamma",
    "ss_seed",
    "ss_training_comment",
)


def format_lora_summary(file: LoraFile, all_metadata: bool = False) -> list[str]:
    layers = file.layers
    size = file.path.stat().st_size
    types = " and ".join(file.adapter_types) + (
        ", read as the equivalent LoRA" if set(file.adapter_types) & {"loha", "lokr", "locon", "full"} else ""
    )
    dtype = str(file.dtype).removeprefix("torch.")
    lines = [
        f"file       {escape_text(str(file.path), 400)}",
        f"format     {file.file_format}, {dtype}, {file.tensor_count} tensors, {size / 2**20:.2f} MiB",
        f"sha256     {file.digest}",
        f"fits       {file.architecture.name}",
        f"type       {types}",
        f"rank       {format_counts(layer.rank for layer in layers.values())}",
        f"alpha      {format_counts(layer.alpha for layer in layers.values())}",
    ]
    for part, names in file.parts.items():
        counts = Counter(map(get_target_name, names)).most_common()
        targets = ", ".join(f"{name} {count}" for name, count in counts[:8])
        lines.append(f"targets    {part}: {targets}" + f", and {len(counts) - 8} more" * (len(counts) > 8))
    if file.offsets:
        lines.append(
            f"other      {len(file.offsets)} biases and norms, such as {'.'.join(min(file.offsets))}: can only be merged"
        )
    lines += [f"note       {escape_text(note, 400)}" for note in file.notes]
    table = ["", *format_block_table(file)] if layers else []
    return [*lines, *table, "", *format_metadata(file.metadata, all_metadata)]


def format_counts(values) -> str:
    """`8 (all 96 layers)`, or the range and the most common values."""
    counts = Counter(f"{value:g}" for value in values)
    if not counts:
        return "none"
    if len(counts) == 1:
        value, count = counts.popitem()
        return f"{value} (all {count} layers)"
    common = ", ".join(f"{value} ({count})" for value, count in counts.most_common(6))
    return f"{min(counts, key=float)} to {max(counts, key=float)}: {common}{', …' if len(counts) > 6 else ''}"


def get_target_name(layer: str) -> str:
    """The suffix of a layer name that selects it as a target."""
    names = layer.split(".")
    return ".".join(names[-2:]) if names[-1].isdigit() else names[-1]


def get_block_name(part: str, layer: str) -> str:
    """The block of the network that contains a layer."""
    names = layer.split(".")
    if is_text_encoder(part):
        numbers, encoder = [name for name in names if name.isdigit()], part.replace("_encoder", "").replace("_", " ")
        return f"{encoder} layer {numbers[0]}" if numbers else encoder
    if names[0].endswith("blocks"):
        return f"{names[0].removesuffix('_blocks').removesuffix('_block')} {names[1]}"
    return names[0]


def format_block_table(file: LoraFile) -> list[str]:
    """The Frobenius norm of dW by block, and the layers with the largest norms."""
    energies = {key: compute_energy(layer.to_low_rank()) for key, layer in file.layers.items()}
    blocks: dict[str, list] = {}
    for key in file.layers:
        blocks.setdefault(get_block_name(*key), []).append(key)
    block_energies = {name: sum(energies[key] for key in keys) for name, keys in blocks.items()}
    total = sum(energies.values()) or 1.0
    width, largest = max(12, *map(len, blocks)), max(block_energies.values()) or 1.0
    rows = [f"{'block':{width}}  layers    rank      |dW|   share"]
    for name, keys in blocks.items():
        ranks, energy = sorted({file.layers[key].rank for key in keys}), block_energies[name]
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
        bar = "█" * round(BAR_WIDTH * energy / largest)
        rows.append(
            f"{name:{width}}  {len(keys):6}  {rank:>6}  {energy**0.5:#8.4g}  {energy / total:6.1%}  {bar}".rstrip()
        )
    rows.append(f"{'all':{width}}  {len(energies):6}  {'':6}  {sum(energies.values()) ** 0.5:#8.4g}  100.0%")
    top = sorted(energies, key=energies.get, reverse=True)[:5]
    return [*rows, "", "largest", *(f"  {energies[key] ** 0.5:#8.4g}  {key[0]}.{key[1]}" for key in top)]


def format_metadata(metadata: dict[str, str], all_metadata: bool) -> list[str]:
    """Header metadata from untrusted sources: control characters are escaped and long values truncated."""
    lines = [f"history    {line}" for line in format_provenance(metadata.get("sdft", ""))]
    if all_metadata:
        names = sorted(set(metadata) - {"sdft"})
    else:
        names = [name for name in MAIN_METADATA_KEYS if name in metadata]
    lines += [f"metadata   {escape_text(name, 60)} = {escape_text(metadata[name])}" for name in names]
    hidden = len(set(metadata) - set(names) - {"format", "sdft", PEFT_CONFIG_KEY})
    lines += [f"           {hidden} more in the header; all=true prints them"] * bool(hidden)
    return lines or ["metadata   none"]


def format_provenance(text: str) -> list[str]:
    """The record that `sdft mix`, `merge`, `extract`, `resize` or `convert` wrote into the header."""
    try:
        record = json.loads(text)
        sources = [
            f"{source['file']} ({str(source['sha256'])[:12]}{format_weight(source)})" for source in record["sources"]
        ][:20]
        settings = ", ".join(f"{key} {value}" for key, value in record.items() if key not in ("created_by", "sources"))
        creator = f"{record['created_by']} ({settings})" if settings else record["created_by"]
        return [escape_text(f"{creator} from {', '.join(sources)}", 600)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [escape_text(text)] if text else []


def format_weight(source: dict) -> str:
    return f", weight {source['weight']:g}" if "weight" in source else ""


def escape_text(text: str, max_length: int = MAX_VALUE_LENGTH) -> str:
    text = text if len(text) <= max_length else f"{text[:max_length]}… ({len(text)} characters)"
    return escape_unprintable(text)

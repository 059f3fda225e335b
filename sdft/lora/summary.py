"""What is in a LoRA file, in lines: its format, its factors, how much it changes where, and what its header tells."""

import json
from collections import Counter

from sdft.lora.file import PEFT_CONFIG_KEY, LoraFile
from sdft.lora.low_rank import compute_energy

BAR_WIDTH = 24  # letters of the longest bar
MAX_VALUE_LENGTH = 96  # letters of a value of the header
MAIN_METADATA_KEYS = (  # of the header, what most want to know
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


def format_lora_summary(file: LoraFile, everything: bool = False) -> list[str]:
    layers = file.layers
    size = file.path.stat().st_size
    kind = " and ".join(file.adapter_types) + (
        ", read as the LoRA it equals" if set(file.adapter_types) & {"loha", "lokr", "locon"} else ""
    )
    told = [
        f"file     {escape_text(str(file.path), 400)}",
        f"format   {file.file_format}, {str(file.dtype).removeprefix('torch.')}, {file.tensors} tensors, {size / 2**20:.2f} MiB",
        f"sha256   {file.digest}",
        f"fits     {file.architecture}",
        f"kind     {kind}",
        f"rank     {format_counts(layer.rank for layer in layers.values())}",
        f"alpha    {format_counts(layer.alpha for layer in layers.values())}",
    ]
    for part, names in file.parts.items():
        ends = Counter(map(get_target_name, names)).most_common()
        shown = ", ".join(f"{end} {count}" for end, count in ends[:8]) + f", and {len(ends) - 8} more" * (len(ends) > 8)
        told.append(f"targets  {part}: {shown}")
    return [*told, "", *format_block_table(file), "", *format_metadata(file.metadata, everything)]


def format_counts(values) -> str:
    """`8 (96 layers)`, or the range and the most common values."""
    counts = Counter(f"{value:g}" for value in values)
    if len(counts) == 1:
        value, count = counts.popitem()
        return f"{value} (all {count} layers)"
    common = ", ".join(f"{value} ({count})" for value, count in counts.most_common(6))
    return f"{min(counts, key=float)} to {max(counts, key=float)}: {common}{', …' if len(counts) > 6 else ''}"


def get_target_name(layer: str) -> str:
    """What a target would be called."""
    words = layer.split(".")
    return ".".join(words[-2:]) if words[-1].isdigit() else words[-1]


def get_block_name(part: str, layer: str) -> str:
    """Where in its network a layer is."""
    words = layer.split(".")
    if part == "text_encoder":
        numbers = [word for word in words if word.isdigit()]
        return f"text layer {numbers[0]}" if numbers else "text"
    return (
        f"{words[0].removesuffix('_blocks').removesuffix('_block')} {words[1]}"
        if words[0].endswith("blocks")
        else words[0]
    )


def format_block_table(file: LoraFile) -> list[str]:
    """The Frobenius norm of dW of each block, and the layers that change most."""
    norms = {key: compute_energy(layer.to_low_rank()) for key, layer in file.layers.items()}
    blocks: dict[str, list] = {}
    for key in file.layers:
        blocks.setdefault(get_block_name(*key), []).append(key)
    sums, whole = {name: sum(norms[key] for key in keys) for name, keys in blocks.items()}, sum(norms.values()) or 1.0
    wide, top = max(12, *map(len, blocks)), max(sums.values()) or 1.0
    rows = [f"{'block':{wide}}  layers    rank      |dW|   share"]
    for name, keys in blocks.items():
        ranks = sorted({file.layers[key].rank for key in keys})
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
        share = f"{sums[name] / whole:6.1%}"
        bar = "█" * round(BAR_WIDTH * sums[name] / top)
        rows.append(f"{name:{wide}}  {len(keys):6}  {rank:>6}  {sums[name] ** 0.5:#8.4g}  {share}  {bar}".rstrip())
    rows.append(f"{'all':{wide}}  {len(norms):6}  {'':6}  {sum(norms.values()) ** 0.5:#8.4g}  100.0%")
    largest = sorted(norms, key=norms.get, reverse=True)[:5]
    return [*rows, "", "largest", *(f"  {norms[key] ** 0.5:#8.4g}  {key[0]}.{key[1]}" for key in largest)]


def format_metadata(metadata: dict[str, str], everything: bool) -> list[str]:
    """Whatever strangers wrote there is data: marks that a terminal would act on are spelled out, and long values cut."""
    told = [f"made     {line}" for line in format_provenance(metadata.get("sdft", ""))]
    names = (
        sorted(set(metadata) - {"sdft"}) if everything else [name for name in MAIN_METADATA_KEYS if name in metadata]
    )
    told += [f"told     {escape_text(name, 60)} = {escape_text(metadata[name])}" for name in names]
    rest = len(set(metadata) - set(names) - {"format", "sdft", PEFT_CONFIG_KEY})
    return told + [f"         {rest} more in its header; all=true shows them"] * bool(rest) or [
        "told     nothing in its header"
    ]


def format_provenance(text: str) -> list[str]:
    """What a program of this project wrote about how it made a file."""
    try:
        told = json.loads(text)
        of = [f"{one['file']} ({str(one['sha256'])[:12]}{format_weight(one)})" for one in told["of"]][:20]
        words = ", ".join(f"{key} {value}" for key, value in told.items() if key not in ("created_by", "of"))
        return [escape_text(f"by {told['created_by']}{f' ({words})' if words else ''} of {', '.join(of)}", 600)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [escape_text(text)] if text else []


def format_weight(one: dict) -> str:
    return f", weight {one['weight']:g}" if "weight" in one else ""


def escape_text(text: str, most: int = MAX_VALUE_LENGTH) -> str:
    text = text if len(text) <= most else f"{text[:most]}… ({len(text)} letters)"
    return "".join(m if m.isprintable() else m.encode("unicode_escape", "surrogatepass").decode() for m in text)

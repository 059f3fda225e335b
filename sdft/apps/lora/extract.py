"""Extract a LoRA from the difference of two models: sdft extract base=FOLDER tuned=FOLDER rank=16"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text

OPTION_TYPES = {"base": str, "tuned": str, "rank": int | None, "energy": float | None}
OPTION_TYPES |= {"name": str, "dtype": str, "folder": str}
TARGET_OPTIONS = ("unet_targets", "text_encoder_targets")  # of the UNet, and of all text encoders


@hydra_main("extract")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES | {key: list[str] for key in TARGET_OPTIONS if cfg.get(key) is not None})
    from rich.console import Console
    from rich.progress import track

    from sdft.apps.lora.lora_io import check_file_name, format_ranks, parse_dtype, save_lora_formats
    from sdft.lora.architecture import get_model_architecture
    from sdft.lora.families import is_text_encoder
    from sdft.lora.merging import build_extract_metadata, extract_lora, load_model_or_run

    check_file_name(cfg.name)
    parse_dtype(cfg.dtype)
    base, tuned = load_model_or_run(cfg.base, "base"), load_model_or_run(cfg.tuned, "tuned")
    console = Console()
    targets = {part: cfg[TARGET_OPTIONS[is_text_encoder(part)]] for part in base.components}

    def track_layers(layers: list):
        return track(layers, "extract", console=console, disable=not console.is_terminal)

    result, fraction = extract_lora(base, tuned, cfg.rank, cfg.energy, targets, track_layers)
    count = sum(len(layers) for layers in result.parts.values())
    ranks = format_ranks(result.ranks)
    print_text(f"layers     {count}, rank {ranks}: retains {result.energy_fraction:.4%} of the energy of their change")
    if fraction < 0.9999:
        print_text(f"omitted    {1 - fraction:.4%} of the total change: norms, biases and layers outside the targets")
    metadata = build_extract_metadata(base, tuned, cfg.rank, cfg.energy, result.energy_fraction)
    save_lora_formats(result.parts, get_model_architecture(base), Path(cfg.folder), cfg.name, metadata, cfg.dtype)


if __name__ == "__main__":
    main()

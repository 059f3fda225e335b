"""The LoRA between two models: sdft extract base=FOLDER tuned=FOLDER rank=16"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main

OPTION_TYPES = {"base": str, "tuned": str, "rank": int | None, "energy": float | None}
OPTION_TYPES |= {"name": str, "dtype": str, "folder": str}
TARGET_OPTIONS = ("unet_targets", "text_encoder_targets")


@hydra_main("extract")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES | {key: list[str] for key in TARGET_OPTIONS if cfg.get(key) is not None})
    from rich.console import Console
    from rich.progress import track

    from sdft.apps.lora.lora_io import check_file_name, format_ranks, parse_dtype, save_lora_formats
    from sdft.lora.merging import build_extract_metadata, extract_lora
    from sdft.lora.merging import load_model_or_run as model_of

    check_file_name(cfg.name)
    parse_dtype(cfg.dtype)
    base, tuned = model_of(cfg.base, "base"), model_of(cfg.tuned, "tuned")
    console = Console()
    targets = {part: cfg[key] for part, key in zip(("unet", "text_encoder"), TARGET_OPTIONS, strict=True)}

    def told(names: list):
        return track(names, "extract", console=console, disable=not console.is_terminal)

    made, share = extract_lora(base, tuned, cfg.rank, cfg.energy, targets, told)
    layers = sum(len(found) for found in made.parts.values())
    print(
        f"layers   {layers}, rank {format_ranks(made.ranks)}: {made.energy_fraction:.4%} of the energy of what changed in them"
    )
    if share < 0.9999:
        print(f"left     {1 - share:.4%} of all that changed lies in norms, biases or layers not asked for")
    save_lora_formats(
        made.parts,
        Path(cfg.folder),
        cfg.name,
        build_extract_metadata(base, tuned, cfg.rank, cfg.energy, made.energy_fraction),
        cfg.dtype,
    )


if __name__ == "__main__":
    main()

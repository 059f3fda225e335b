"""The LoRA between two models: sdft extract base=FOLDER tuned=FOLDER rank=16"""

from pathlib import Path

from sdft.cli.entry_point import command

WORDS = {"base": str, "tuned": str, "rank": int | None, "energy": float | None}
WORDS |= {"name": str, "dtype": str, "folder": str}
TARGETS = ("unet_targets", "text_targets")


@command("extract")
def main(cfg):
    from sdft.config import check, typed

    check(cfg)
    typed(cfg, WORDS | {key: list[str] for key in TARGETS if cfg.get(key) is not None})
    from rich.console import Console
    from rich.progress import track

    from sdft.apps.lora.lora_io import dtype_of, file_name, ranks_told, save
    from sdft.lora.merging import extract, tuned_record
    from sdft.lora.merging import opened as model_of

    file_name(cfg.name)
    dtype_of(cfg.dtype)
    base, tuned = model_of(cfg.base, "base"), model_of(cfg.tuned, "tuned")
    console = Console()
    targets = {part: cfg[key] for part, key in zip(("unet", "text_encoder"), TARGETS, strict=True)}

    def told(names: list):
        return track(names, "extract", console=console, disable=not console.is_terminal)

    made, share = extract(base, tuned, cfg.rank, cfg.energy, targets, told)
    layers = sum(len(found) for found in made.parts.values())
    print(f"layers   {layers}, rank {ranks_told(made.ranks)}: {made.kept:.4%} of the energy of what changed in them")
    if share < 0.9999:
        print(f"left     {1 - share:.4%} of all that changed lies in norms, biases or layers not asked for")
    save(made.parts, Path(cfg.folder), cfg.name, tuned_record(base, tuned, cfg.rank, cfg.energy, made.kept), cfg.dtype)


if __name__ == "__main__":
    main()

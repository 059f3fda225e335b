"""Reduce the rank of a LoRA file: sdft resize adapter=FILE rank=8"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text

OPTION_TYPES = {"adapter": str, "rank": int | None, "energy": float | None}
OPTION_TYPES |= {"name": str, "dtype": str, "architecture": str | None, "folder": str}


@hydra_main("resize")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    from sdft.apps.lora.lora_io import (
        build_adapters,
        build_provenance,
        check_file_name,
        format_ranks,
        parse_dtype,
        read_lora_files,
        save_lora_formats,
    )
    from sdft.lora.resizing import resize_lora_file

    check_file_name(cfg.name)
    parse_dtype(cfg.dtype)
    (file,) = read_lora_files([cfg.adapter], cfg.architecture)
    build_adapters(file.path, file.parts)  # a DoRA that cannot be written is refused before the work
    result = resize_lora_file(file, cfg.rank, cfg.energy)
    ranks = sorted({layer.rank for layer in file.layers.values()})
    print_text(f"rank       {format_ranks(ranks)} -> {format_ranks(result.ranks)}")
    print_text(f"retains    {result.energy_fraction:.4%} of the energy of the change")
    settings = {"rank": cfg.rank} if cfg.rank else {"energy": cfg.energy}
    settings["energy_fraction"] = round(result.energy_fraction, 6)
    metadata = file.metadata | build_provenance("resize", [file], **settings)
    save_lora_formats(result.parts, file.architecture, Path(cfg.folder), cfg.name, metadata, cfg.dtype)


if __name__ == "__main__":
    main()

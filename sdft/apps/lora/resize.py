"""A LoRA file of a lower rank: sdft resize adapter=FILE rank=8"""

from pathlib import Path

from sdft.cli.entry_point import command

WORDS = {"adapter": str, "rank": int | None, "energy": float | None}
WORDS |= {"name": str, "dtype": str, "architecture": str | None, "folder": str}


@command("resize")
def main(cfg):
    from sdft.config import check, typed

    check(cfg)
    typed(cfg, WORDS)
    from sdft.apps.lora.lora_io import dtype_of, file_name, opened, ranks_told, record, save
    from sdft.lora.mixing import resize

    file_name(cfg.name)
    dtype_of(cfg.dtype)
    (file,) = opened([cfg.adapter], cfg.architecture)
    made = resize(file, cfg.rank, cfg.energy)
    before = sorted({layer.rank for layer in file.layers.values()})
    print(f"rank     {ranks_told(before)} before, {ranks_told(made.ranks)} now")
    print(f"kept     {made.kept:.4%} of the change's energy")
    words = {"rank": cfg.rank} if cfg.rank else {"energy": cfg.energy}
    metadata = file.metadata | record("resize", [file], **words, kept=round(made.kept, 6))
    save(made.parts, Path(cfg.folder), cfg.name, metadata, cfg.dtype)


if __name__ == "__main__":
    main()

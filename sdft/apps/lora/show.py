"""What is in a LoRA file: sdft show adapter=FILE"""

from sdft.cli.entry_point import command

WORDS = {"adapter": str, "all": bool, "architecture": str | None}


@command("show")
def main(cfg):
    from sdft.config import check, typed

    check(cfg)
    typed(cfg, WORDS)
    from sdft.apps.lora.lora_io import opened
    from sdft.lora.summary import lines

    (file,) = opened([cfg.adapter], cfg.architecture)
    print("\n".join(lines(file, cfg.all)))


if __name__ == "__main__":
    main()

"""What is in a LoRA file: python -m sdft.apps.show adapter=FILE"""

from sdft.command import command

WORDS = {"adapter": str, "all": bool, "architecture": str | None}


@command("show")
def main(cfg):
    from sdft.config import check, typed

    check(cfg)
    typed(cfg, WORDS)
    from sdft.apps.files import opened
    from sdft.lora.contents import lines

    (file,) = opened([cfg.adapter], cfg.architecture)
    print("\n".join(lines(file, cfg.all)))


if __name__ == "__main__":
    main()

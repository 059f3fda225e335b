"""Print a summary of a LoRA file: sdft show adapter=FILE"""

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text

OPTION_TYPES = {"adapter": str, "all": bool, "architecture": str | None}


@hydra_main("show")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    from sdft.apps.lora.lora_io import read_lora_files
    from sdft.lora.summary import format_lora_summary

    (file,) = read_lora_files([cfg.adapter], cfg.architecture, offsets=True)
    print_text(*format_lora_summary(file, cfg.all))


if __name__ == "__main__":
    main()

"""Report on a dataset without training: sdft inspect data.path=PHOTOS"""

import sys
from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text


@hydra_main("inspect")
def main(cfg):
    from sdft.config import check_config

    check_config(cfg)
    from hydra.utils import instantiate

    from sdft.data.contact_sheet import ContactSheet
    from sdft.data.dataset_report import build_dataset_report
    from sdft.data.transforms import apply_caption_template
    from sdft.models.clip_tokenizer import load_clip_tokenizer
    from sdft.models.embedded import ASSETS_FOLDER

    source, settings = apply_caption_template(instantiate(cfg.data), cfg.caption_template), instantiate(cfg.dataset)
    tokenizer = load_clip_tokenizer(ASSETS_FOLDER / "sd15" / "tokenizer")
    plan = settings.build_plan(source, cfg.unit, cfg.batch_size)
    sizes = settings.choose_target_sizes(source, cfg.unit)
    report = build_dataset_report(source, sizes, plan.steps_per_epoch, tokenizer, tokenizer.model_max_length)
    print_text(*report.lines)
    for warning in report.warnings:
        print_text(f"warning    {warning}", file=sys.stderr)
    print_text(f"schedule   {plan.steps_per_epoch:g} steps per epoch, batch {cfg.batch_size}")
    if cfg.contact_sheet:
        ContactSheet(source, sizes).draw().save(cfg.contact_sheet)
        print_text(f"images     {Path(cfg.contact_sheet)}")


if __name__ == "__main__":
    main()

"""What a data set holds, without training: sdft inspect data.path=PHOTOS"""

import sys
from pathlib import Path

from sdft.cli.entry_point import command


@command("inspect")
def main(cfg):
    from sdft.config import check

    check(cfg)
    from hydra.utils import instantiate

    from sdft.data.dataset_report import contact_sheet, report
    from sdft.data.transforms import worded
    from sdft.models.clip_tokenizer import clip_tokenizer
    from sdft.models.embedded import FOLDER

    source, stream = worded(instantiate(cfg.data), cfg.caption_template), instantiate(cfg.dataset)
    tokenizer = clip_tokenizer(FOLDER / "sd15" / "tokenizer")
    plan = stream.plan(source, cfg.unit, cfg.batch_size)
    sizes = stream.sizes(source, cfg.unit)
    found = report(source, sizes, plan.steps_an_epoch, tokenizer, tokenizer.model_max_length)
    print("\n".join(found.lines))
    for line in found.warnings:
        print(f"warning  {line}", file=sys.stderr)
    print(f"runs     {plan.steps_an_epoch:g} steps an epoch of batch {cfg.batch_size}")
    if cfg.sheet:
        contact_sheet(source, sizes).save(cfg.sheet)
        print(f"look     {Path(cfg.sheet)}")


if __name__ == "__main__":
    main()

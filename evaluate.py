"""Score: python evaluate.py run=outputs/NAME/STAMP   (--help lists every word)."""

from pathlib import Path

from sdft.command import command


@command("evaluate")
def main(cfg):
    from sdft.config import check
    from sdft.evaluation import config_of, evaluate, newest_run
    from sdft.prompts import read_prompts

    run = Path(cfg.run) if cfg.run else newest_run()
    trained = config_of(run, cfg.get("metrics"), cfg.images)
    check(trained)
    print(f"sdft · {run}")
    evaluate(run, trained, read_prompts(cfg.prompts))


if __name__ == "__main__":
    main()

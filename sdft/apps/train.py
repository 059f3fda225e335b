"""Fine-tune: python train.py method=lora rank=32, or sdft train method=lora rank=32   (--help lists all options)."""

from sdft.cli.entry_point import hydra_main


@hydra_main("train")
def main(cfg, invocation):
    from sdft.config import check_config

    check_config(cfg)
    from sdft.runs.invocation import ExitStatus
    from sdft.training.training_run import train

    if not train(cfg, invocation).is_reproduced:
        raise ExitStatus(1)


if __name__ == "__main__":
    main()

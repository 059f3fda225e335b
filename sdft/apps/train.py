"""Fine-tune: python train.py method=lora rank=32, or sdft train method=lora rank=32   (--help lists all options)."""

from sdft.cli.entry_point import hydra_main
from sdft.cli.imports import import_training_libraries, pause_garbage_collection
from sdft.config import check_config


@hydra_main("train")
def main(cfg, invocation):
    with pause_garbage_collection():
        check_config(cfg)
        import_training_libraries(str(cfg.logger))
        from sdft.runs.invocation import ExitStatus
        from sdft.training.training_run import train

    if not train(cfg, invocation).is_reproduced:
        raise ExitStatus(1)


if __name__ == "__main__":
    main()

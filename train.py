"""Fine-tune: python train.py method=lora rank=32   (--help lists all options)."""

from sdft.cli.entry_point import hydra_main


@hydra_main("train")
def main(cfg):
    from sdft.config import check_config

    check_config(cfg)
    from sdft.training.training_run import train

    train(cfg)


if __name__ == "__main__":
    main()

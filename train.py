"""Fine-tune: python train.py method=lora rank=32   (--help lists all options)."""

from sdft.__main__ import run_program

if __name__ == "__main__":
    run_program("sdft.apps.train")

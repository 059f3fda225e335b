"""Fine-tune: python train.py method=lora rank=32   (--help lists all options)."""

from sdft.apps.train import main

if __name__ == "__main__":
    main()

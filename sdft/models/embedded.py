"""Embedded models: a small but complete Stable Diffusion and the CLIP that evaluates it. Commands that trained them:

    python -m scripts.train_tiny_tokenizer         seconds      tiny-sd/tokenizer
    python -m scripts.train_tiny_vae               10 minutes   tiny-sd/vae
    python -m scripts.train_tiny_clip              15 minutes   tiny-clip, tiny-sd/text_encoder
    python train.py experiment=digits_base         20 minutes   tiny-sd/unet

Times are for two CPU cores. `sd15/` and `sd21/` hold only the published configurations, for `model.weights=random`.
"""

from pathlib import Path

ASSETS_FOLDER = Path(__file__).parent.parent / "assets"
TINY_SD, TINY_CLIP = ASSETS_FOLDER / "tiny-sd", ASSETS_FOLDER / "tiny-clip"

"""Embedded models: small but complete Stable Diffusion and SDXL, and the CLIP that evaluates them. Commands that trained them:

    python -m scripts.train_tiny_tokenizer         seconds      tiny-sd/tokenizer
    python -m scripts.train_tiny_vae               10 minutes   tiny-sd/vae
    python -m scripts.train_tiny_clip              15 minutes   tiny-clip, tiny-sd/text_encoder
    python train.py experiment=digits_base         20 minutes   tiny-sd/unet
    python -m scripts.train_tiny_xl                10 minutes   tiny-xl/text_encoder_2
    python train.py experiment=digits_base_xl      55 minutes   tiny-xl/unet

Times are for two CPU cores. `sd15/`, `sd21/` and `sdxl/` hold only the published configurations, for `model.weights=random`.
"""

from pathlib import Path

ASSETS_FOLDER = Path(__file__).parent.parent / "assets"
TINY_SD, TINY_XL, TINY_CLIP = (ASSETS_FOLDER / name for name in ("tiny-sd", "tiny-xl", "tiny-clip"))


def find_embedded_models() -> dict[str, Path]:
    """Folders of the models in the package with weights, by name."""
    return {index.parent.name: index.parent for index in ASSETS_FOLDER.glob("*/model_index.json")}


def find_bundled_configs() -> dict[str, Path]:
    """Folders in the package with the configurations of a model, by name, in order."""
    return {folder.parent.name: folder.parent for folder in sorted(ASSETS_FOLDER.glob("*/unet"))}

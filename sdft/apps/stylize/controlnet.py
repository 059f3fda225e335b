"""ControlNet: a copy of the UNet's first half that reads edges and steers the rest (Zhang et al., 2023)."""

from pathlib import Path

from PIL import Image

from sdft.models.safetensors_check import check_safetensors
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.files import read_json

CANNY_LOW, CANNY_HIGH = 100, 200  # of the intensity gradient, as the published Canny ControlNet was trained with
SHARED_CONFIG_KEYS = (
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "in_channels",
)  # what the UNet must share


def detect_edges(picture: Image.Image) -> Image.Image:
    """White on black, RGB, of the same size (Canny, 1986)."""
    import numpy as np

    return Image.fromarray(import_opencv().Canny(np.asarray(picture.convert("RGB")), CANNY_LOW, CANNY_HIGH)).convert(
        "RGB"
    )


def import_opencv():
    """Whose Canny the thresholds are of."""
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "controlnet: edges are found with OpenCV, which is not installed: pip install -e '.[edges]'; "
            "or give controlnet=none"
        ) from None
    return cv2


def load_controlnet(name: str, model: StableDiffusion):
    """From a folder in the diffusers layout, or the hub; `ValueError` when there is none, or it is for another base."""
    from diffusers import ControlNetModel
    from diffusers.utils import logging

    import_opencv()
    logging.set_verbosity_error()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(f"controlnet={name}: no such folder; give one, a hub id, or none for plain image-to-image")
        folder = download_controlnet(name)
    check_controlnet(folder)
    try:
        net = ControlNetModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"controlnet={name}: not to be opened ({str(error).strip().splitlines()[0]})") from None
    check_controlnet_base(name, net, model)
    return net.requires_grad_(False).eval()


def download_controlnet(name: str) -> Path:
    """The folder that a hub id is, or will be, downloaded to: configuration and safetensors alone."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "diffusion_pytorch_model.safetensors"]))
    except (RepositoryNotFoundError, HFValidationError):
        why = "the hub has no such repository"
    except (OSError, httpx.HTTPError):
        why = "the hub cannot be reached"
    raise ValueError(
        f"controlnet={name}: no weights of it are here, and {why}; give a folder in the diffusers layout, "
        "or controlnet=none for plain image-to-image"
    )


def check_controlnet(folder: Path) -> None:
    """`ValueError` before anything of it is opened."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "ControlNetModel" or "auto_map" in config:
        kind = config.get("_class_name", "nothing")
        raise ValueError(f"controlnet={folder}: its config.json describes {kind}, not a ControlNetModel")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"controlnet={folder}: no .safetensors in it; pickles can hold code, and are not opened")
    for file in files:
        check_safetensors(file, "controlnet")


def check_controlnet_base(name: str, net, model: StableDiffusion) -> None:
    """What it adds must have the shapes of what the UNet passes on."""
    for key in SHARED_CONFIG_KEYS:
        its, wanted = (tuple_to_list(one.config[key]) for one in (net, model.unet))
        if its != wanted:
            raise ValueError(f"controlnet={name}: made for another base: {key} {its}, and {model.name} has {wanted}")
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if factor != model.vae_scale_factor:
        raise ValueError(
            f"controlnet={name}: made for another base: {factor} pixels a latent, not {model.vae_scale_factor}"
        )


def tuple_to_list(value):
    return list(value) if isinstance(value, list | tuple) else value

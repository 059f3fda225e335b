"""Load a ControlNet that conditions the UNet on Canny edges (Zhang et al., 2023)."""

from pathlib import Path

from PIL import Image

from sdft.models.diffusion_model import DiffusionModel
from sdft.models.safetensors_check import check_safetensors
from sdft.runs.files import read_json
from sdft.runs.terminal import describe_error

CANNY_CONTROLNETS = {  # hub ids of published ControlNets by the width of the text embeddings
    768: "lllyasviel/sd-controlnet-canny",
    2048: "diffusers/controlnet-canny-sdxl-1.0",
}
CANNY_LOW, CANNY_HIGH = 100, 200  # thresholds of the intensity gradient, as in the published Canny ControlNet
SHARED_CONFIG_KEYS = (
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "in_channels",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)  # must equal the UNet's


def detect_edges(image: Image.Image) -> Image.Image:
    """Canny edges, white on black, RGB, of the same size (Canny, 1986)."""
    import numpy as np

    edges = import_opencv().Canny(np.asarray(image.convert("RGB")), CANNY_LOW, CANNY_HIGH)
    return Image.fromarray(edges).convert("RGB")


def import_opencv():
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "controlnet: edge detection requires OpenCV; pip install -e '.[edges]', or set controlnet=none"
        ) from None
    return cv2


def choose_controlnet(model: DiffusionModel) -> str:
    """The published ControlNet for edges of the model's family; `ValueError` if there is none."""
    width = model.unet.config.cross_attention_dim
    if width not in CANNY_CONTROLNETS:
        raise ValueError(
            f"controlnet=null: no ControlNet for edges is known for {model.name}; give a folder or hub id, or controlnet=none"
        )
    return CANNY_CONTROLNETS[width]


def load_controlnet(name: str, model: DiffusionModel):
    """Load from a folder in the diffusers layout or the hub; `ValueError` if it is missing or incompatible with the model."""
    from diffusers import ControlNetModel
    from diffusers.utils import logging

    import_opencv()
    logging.set_verbosity_error()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(
                f"controlnet={name}: no such folder; give a folder, a hub id, or none for plain image-to-image"
            )
        folder = download_controlnet(name)
    check_controlnet(folder)
    try:
        net = ControlNetModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"controlnet={name}: cannot be loaded ({describe_error(error)})") from None
    check_controlnet_base(name, net, model)
    return net.requires_grad_(False).eval().to(model.compute_dtype)


def download_controlnet(name: str) -> Path:
    """Download config and safetensors of a hub repository unless cached; return the local folder."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "diffusion_pytorch_model.safetensors"]))
    except (RepositoryNotFoundError, HFValidationError):
        reason = "the hub has no such repository"
    except (OSError, httpx.HTTPError):
        reason = "the hub cannot be reached"
    raise ValueError(
        f"controlnet={name}: not cached, and {reason}; give a folder in the diffusers layout, "
        "or controlnet=none for plain image-to-image"
    )


def check_controlnet(folder: Path) -> None:
    """Check config and weight files without loading them; `ValueError` if unsafe or not a ControlNet."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "ControlNetModel" or "auto_map" in config:
        kind = config.get("_class_name", "nothing")
        raise ValueError(f"controlnet={folder}: its config.json describes {kind}, not a ControlNetModel")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"controlnet={folder}: no .safetensors file; pickle files can execute code and are not loaded")
    for file in files:
        check_safetensors(file, "controlnet")


def check_controlnet_base(name: str, net, model: DiffusionModel) -> None:
    """`ValueError` if its residuals would not have the shapes of the UNet's activations."""
    for key in SHARED_CONFIG_KEYS:
        value, expected = (tuple_to_list(network.config[key]) for network in (net, model.unet))
        if value != expected:
            raise ValueError(
                f"controlnet={name}: made for another base: {key} {value}, but {model.name} has {expected}"
            )
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if factor != model.vae_scale_factor:
        raise ValueError(
            f"controlnet={name}: made for another base: {factor} pixels per latent, not {model.vae_scale_factor}"
        )


def tuple_to_list(value):
    return list(value) if isinstance(value, list | tuple) else value

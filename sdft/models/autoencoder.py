"""Another autoencoder than the base's own: a folder in the diffusers layout, or a file in the original layout."""

from pathlib import Path

import torch

from sdft.models.checkpoint_file import OTHER_MODELS, PARTS_OF_MODELS, CheckpointFile, read_checkpoint_header
from sdft.models.family import read_config
from sdft.models.model_folder import load_network
from sdft.models.original_layout import VAE_PREFIX, map_vae
from sdft.models.safetensors_check import find_variants
from sdft.models.single_file import check_weights
from sdft.models.weight_sources import FileWeights, assign_weights
from sdft.runs.files import get_identity
from sdft.runs.hashing import hash_large_file, share_digests

OPTION = "model.vae"
VAE_CLASS = "AutoencoderKL"
FIRST_LAYER = "decoder.mid.block_1.conv1.weight"  # which diffusers names otherwise
LATENT_SPACE_KEYS = ("latent_channels", "scaling_factor", "shift_factor")


def load_autoencoder(name: str, base_config):
    """The autoencoder of a folder or file, frozen, in fp32.

    A file has the configuration of the base's own autoencoder. `ValueError` for another latent space than the base's.
    """
    check_autoencoder(name)
    path = Path(name).expanduser()
    vae = load_autoencoder_file(path, base_config) if path.is_file() else load_autoencoder_folder(path)
    for key in LATENT_SPACE_KEYS:
        if vae.config.get(key) != base_config.get(key):
            raise ValueError(
                f"{OPTION}={name}: has {key} {vae.config.get(key)}, but the base {base_config.get(key)}; choose one for this base"
            )
    if len(vae.config.block_out_channels) != len(base_config["block_out_channels"]):
        raise ValueError(
            f"{OPTION}={name}: its latents have another size than those of the base; choose one for this base"
        )
    identities = tuple((file.resolve(), get_identity(file)) for file in list_weight_files(name))
    share_digests(vae, ("vae", identities))
    return vae.requires_grad_(False).eval()


def check_autoencoder(name: str) -> None:
    """`ValueError` for anything else than an autoencoder, before weights are read."""
    path = Path(name).expanduser()
    if path.is_file():
        find_prefix(read_checkpoint_header(path, OPTION))
    elif path.is_dir():
        folder = find_folder(path)
        try:
            config = read_config(folder, "config.json")
        except ValueError as error:
            raise ValueError(str(error).replace("model.name=", f"{OPTION}=", 1)) from None
        if config.get("_class_name") != VAE_CLASS:
            raise ValueError(
                f"{OPTION}={name}: holds {config.get('_class_name')}, not {VAE_CLASS}; give an autoencoder"
            )
    else:
        raise ValueError(
            f"{OPTION}={name}: no such folder or file; give a folder in the diffusers layout or a .safetensors file"
        )


def find_folder(path: Path) -> Path:
    """The folder of the autoencoder itself: that of a model holds it as `vae`."""
    return path / "vae" if (path / "vae").is_dir() else path


def list_weight_files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    return [path] if path.is_file() else sorted(find_folder(path).glob("*.safetensors"))


def describe_source_files(name: str, vae: str | None) -> dict[str, dict]:
    """Name, without its folder, and SHA-256 of the file of the base and of its other autoencoder, where there is one."""
    files = {
        "base": [path] if (path := Path(name).expanduser()).is_file() else [],
        "vae": list_weight_files(vae) if vae else [],
    }
    names = {"base": path.name, "vae": Path(vae or "").name}
    return {
        key: {"name": names[key], "sha256": hash_large_file(group[0])}
        for key, group in files.items()
        if len(group) == 1
    }


def find_prefix(file: CheckpointFile) -> str:
    """What the names of the layers begin with: nothing in a file with the autoencoder only."""
    for prefix in (VAE_PREFIX, ""):
        if prefix + FIRST_LAYER in file.shapes:
            return prefix
    description = file.find_first(OTHER_MODELS) or file.find_first(PARTS_OF_MODELS) or "holds no model that is known"
    raise file.error(
        f"{description}; give an autoencoder in the original layout, or the folder of one in the diffusers layout"
    )


def load_autoencoder_file(path: Path, config):
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL

    file = read_checkpoint_header(path, OPTION)
    with init_empty_weights():
        vae = AutoencoderKL.from_config(config)
    places = map_vae(vae, prefix := find_prefix(file))
    check_weights(file, "vae", {key: weight.shape for key, weight in vae.state_dict().items()}, places)
    layers = {key for key in file.shapes if key.startswith((f"{prefix}encoder.", f"{prefix}decoder."))}
    if unknown := sorted(layers - {place.key for place in places.values()}):
        raise file.error(
            f"has the layer {unknown[0][:200]}, which the base's autoencoder lacks; choose one for this base"
        )
    assign_weights(vae, FileWeights({key: (path, place) for key, place in places.items()}), torch.float32)
    return vae


def load_autoencoder_folder(path: Path):
    folder = find_folder(path)
    try:
        variants = find_variants(folder.parent, folder.name)
        if len(variants) > 1 and None not in variants:
            raise ValueError(f"model.name={path}: has {', '.join(sorted(variants))}; give a folder with one of them")
        variants = {folder.name: None if None in variants else next(iter(variants))}
        return load_network(VAE_CLASS, folder.parent, folder.name, variants)
    except ValueError as error:
        raise ValueError(str(error).replace(f"model.name={folder.parent}", f"{OPTION}={path}", 1)) from None

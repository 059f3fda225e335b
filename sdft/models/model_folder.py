"""Load a model from a folder in the diffusers layout."""

from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import torch

from sdft.models.diffusion_model import DiffusionModel
from sdft.models.family import check_model_family, find_model_class, read_config
from sdft.models.folder_weights import find_folder_weights
from sdft.models.noise_process import compute_alphas_cumprod
from sdft.models.precision import choose_part_dtype
from sdft.models.safetensors_check import check_no_custom_code, choose_variants
from sdft.models.weight_sources import assign_weights
from sdft.runs.files import get_identity
from sdft.runs.hashing import share_digests
from sdft.runs.terminal import describe_error


def load_folder(folder: Path, variant: str | None) -> DiffusionModel:
    """The pretrained model of a folder that `check_model_folder` accepts; `ValueError` if its files are damaged."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights; downloads keep theirs
    model_class = find_model_class(folder)
    variants = choose_variants(folder, variant, model_class.network_classes)
    scheduler = load_scheduler(folder)
    tokenizers = [load_tokenizer(folder, name) for name in model_class.tokenizer_names]
    networks = {}
    for part, component in list_networks(model_class):
        class_name, dtype = model_class.network_classes[component], choose_part_dtype(part)
        if dtype is torch.float32:
            networks[part] = load_network(class_name, folder, component, variants)
        else:
            networks[part] = load_cast_network(class_name, folder, component, variants[component], dtype)
    model = model_class(networks, tokenizers, scheduler)
    read_pipeline_options(model, folder)
    model.checkpoint_prediction_type = model.prediction_type
    share_file_digests(model, sorted(folder.rglob("*.safetensors")))
    return model


def check_model_folder(folder: Path) -> None:
    """`ValueError` for a folder with code, of another family, or with parts that are missing or do not fit each other."""
    check_no_custom_code(folder)
    check_model_family(folder)


def list_networks(model_class: type[DiffusionModel]) -> list[tuple[str, str]]:
    """(part, component) of the denoising network, the VAE and the text encoders, in the order in which they are registered."""
    denoiser, *text_encoders = model_class.component_names.items()
    return [denoiser, ("vae", "vae"), *text_encoders]


def read_pipeline_options(model: DiffusionModel, folder: Path) -> None:
    """Set what model_index.json says about the empty caption."""
    index = read_config(folder, "model_index.json", required=False)
    if model.empty_caption and index.get("force_zeros_for_empty_prompt") is False:
        model.empty_caption = "encoded"


def import_network_class(name: str):
    """A class of diffusers or transformers by name."""
    import diffusers
    import transformers

    return getattr(transformers if name.startswith("CLIP") else diffusers, name)


def load_network(class_name: str, folder: Path, part: str, variants: dict[str, str | None]):
    """One network of a model folder, in fp32; `ValueError` if its weights are damaged or incomplete."""
    network_class = import_network_class(class_name)
    dtype = {"dtype" if class_name.startswith("CLIP") else "torch_dtype": torch.float32}
    with name_part_in_errors(folder, part):
        network, info = network_class.from_pretrained(
            folder,
            subfolder=part,
            variant=variants[part],
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **dtype,
        )
    return check_network(network, info["missing_keys"], folder, part)


def load_cast_network(class_name: str, folder: Path, part: str, variant: str | None, dtype: torch.dtype):
    """Like `load_network`, in `dtype`: weight by weight, without the whole network in fp32."""
    from accelerate import init_empty_weights

    with name_part_in_errors(folder, part):
        with init_empty_weights():
            network = build_untrained_network(class_name, folder, part)
        source, missing = find_folder_weights(network, folder, part, variant)
    check_network(network, missing, folder, part)
    with name_part_in_errors(folder, part):
        assign_weights(network, source, dtype)
    return network


def check_network(network, missing_keys: Iterable[str], folder: Path, part: str):
    """Return the network, without local paths in its configuration, which is exported; `ValueError` for missing weights."""
    if missing := sorted(missing_keys):
        count = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise ValueError(f"model.name={folder}: the weights in {part}/ lack {missing[0]}{count}")
    if hasattr(network, "register_to_config"):
        network.register_to_config(_name_or_path=None)
    return network


def build_untrained_network(class_name: str, folder: Path, component: str):
    network_class = import_network_class(class_name)
    if class_name.startswith("CLIP"):
        return network_class(network_class.config_class.from_pretrained(folder / component))
    return network_class.from_config(network_class.load_config(folder, subfolder=component))


def load_tokenizer(folder: Path, name: str = "tokenizer"):
    """CLIP's tokenizer; `ValueError` if it is damaged or has more tokens than the text encoder."""
    from transformers import CLIPTokenizer

    if not (folder / name).is_dir():
        raise ValueError(f"model.name={folder}: no {name}/")
    with name_part_in_errors(folder, name):
        tokenizer = CLIPTokenizer.from_pretrained(folder / name, local_files_only=True)
    config = read_config(folder, f"{name.replace('tokenizer', 'text_encoder')}/config.json")
    size = (config.get("text_config") or config).get("vocab_size", len(tokenizer))
    if len(tokenizer) > size:
        raise ValueError(
            f"model.name={folder}: {name}/ has {len(tokenizer)} tokens, but its text encoder knows {size}; choose parts that fit"
        )
    return tokenizer


@contextmanager
def name_part_in_errors(folder: Path, part: str):
    """Turn what the libraries raise for invalid configurations and weights into one line; they share no class of errors."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = describe_error(error)[:300]
        raise ValueError(f"model.name={folder}: {part}/ cannot be loaded ({reason})") from None


def share_file_digests(model: DiffusionModel, files: list[Path]) -> None:
    """Share the digests of the model and its frozen parts with all models that these weights files are loaded into."""
    identities = tuple((file.resolve(), get_identity(file)) for file in files)
    for part in ("", "vae", *model.text_encoders):
        share_digests(model.get_submodule(part), (part, identities))


def load_scheduler(folder: Path):
    """The scheduler of scheduler_config.json; `ValueError` if its settings are invalid. `check_model_family` checks its class."""
    import diffusers

    config = read_config(folder, "scheduler/scheduler_config.json")
    with name_part_in_errors(folder, "scheduler"), torch.device("cpu"):  # some compute with NumPy
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        compute_alphas_cumprod(scheduler.config)
    return scheduler

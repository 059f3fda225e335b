"""Whole models to evaluate beside the base: a pipeline folder in the diffusers layout, or a checkpoint in one file.

Each brings its own networks, noise process and empty caption; prompt chunks and CLIP skip are those of the base.
"""

from contextlib import contextmanager
from pathlib import Path

from sdft.models.checkpoint_file import CheckpointFile, read_checkpoint_header
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.family import find_model_class
from sdft.models.loading import load_pretrained, replace_noise_process
from sdft.models.model_folder import check_model_folder
from sdft.models.original_layout import VAE_PREFIX, choose_layout
from sdft.models.single_file import load_weights, match_networks

OPTION = "adapter"
REPLACED_ATTRIBUTES = ("vae", "tokenizers", "scheduler", "noise_process", "empty_caption", "checkpoint_prediction_type")


def is_whole_model(path: Path) -> bool:
    """Whether a path is a pipeline folder or a file with a UNet; `ValueError` for a damaged file."""
    if path.is_file() and path.suffix == ".safetensors":
        return read_checkpoint_header(path, OPTION).has_unet
    return (path / "model_index.json").is_file()


def check_whole_model(model: DiffusionModel, path: Path) -> None:
    """`ValueError` for a model of another family than `model`, or with other layers in a file; reads no weights."""
    if path.is_file():
        file = read_checkpoint_header(path, OPTION)
        (layout, _), expected = file.layout, choose_layout(model)
        if layout != expected:
            raise file.error(f"is {layout.name}, but {model.name} is {expected.name}")
        file.detect_prediction_type(layout)
        match_networks(model, file, list_missing_parts(file))
        return
    with name_adapter_in_errors():
        check_model_folder(path)
    if (family := find_model_class(path).family) != model.family:
        raise ValueError(f"{OPTION}={path}: a pipeline of {family}, but {model.name} is {model.family}")


def load_whole_model(model: DiffusionModel, path: Path) -> None:
    """Put the weights and settings of a pipeline folder or file into `model`; `ValueError` for weights that do not fit."""
    if path.is_file():
        load_file(model, read_checkpoint_header(path, OPTION))
    else:
        load_folder(model, path)


def load_file(model: DiffusionModel, file: CheckpointFile) -> None:
    """What the file leaves open is as in the base: the autoencoder, the prediction type and zero terminal SNR."""
    load_weights(model, file, list_missing_parts(file))
    model.requires_grad_(False).eval()
    prediction_type = file.detect_prediction_type(choose_layout(model)) or model.prediction_type
    if prediction_type != model.prediction_type or file.has_zero_terminal_snr:
        replace_noise_process(model, prediction_type, file.has_zero_terminal_snr)
    model.checkpoint_prediction_type = prediction_type
    if model.empty_caption:
        model.empty_caption = file.empty_caption


def list_missing_parts(file: CheckpointFile) -> tuple[str, ...]:
    has_autoencoder = any(key.startswith(VAE_PREFIX) for key in file.shapes)
    return () if has_autoencoder else ("vae",)


def load_folder(model: DiffusionModel, folder: Path) -> None:
    with name_adapter_in_errors():
        trained = load_pretrained(str(folder))
    for part, network in trained.parts.items():
        try:
            model.parts[part].load_state_dict(network.state_dict())
        except RuntimeError:
            component = model.component_names[part]
            raise ValueError(f"{OPTION}={folder}: the shapes of its {component} do not match {model.name}") from None
    for name in REPLACED_ATTRIBUTES:
        setattr(model, name, getattr(trained, name))


@contextmanager
def name_adapter_in_errors():
    """Replace `model.name=` in errors by the option that the user gave."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("model.name=", f"{OPTION}=", 1)) from None

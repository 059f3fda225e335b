"""Load a model from a folder, the hub, the package, or a configuration with random weights."""

from pathlib import Path

from sdft.models.checkpoint_file import CheckpointFile, read_checkpoint_header
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.embedded import find_bundled_configs, find_embedded_models
from sdft.models.model_folder import (
    check_model_folder,
    load_folder,
    share_file_digests,
)
from sdft.models.noise_process import PREDICTION_TYPES, VariancePreservingProcess
from sdft.models.noise_schedulers import change_prediction_type
from sdft.models.precision import choose_part_dtype
from sdft.models.stable_diffusion_xl import EMPTY_CAPTIONS
from sdft.models.untrained import build_untrained
from sdft.runs.terminal import describe_error

WEIGHT_SOURCES = ("pretrained", "random")


def load_stable_diffusion(
    name: str,
    architecture: str | None = None,
    weights: str = "pretrained",
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
    prompt_chunks: int = 1,
    vae: str | None = None,
    empty_caption: str | None = None,
    clip_skip: int | None = None,
) -> DiffusionModel:
    """An embedded model, a local folder or hub id in the diffusers layout, or a file in the original layout.

    It is in fp32, except within `load_in_precision`.

    A file is recognised by its tensors; `architecture` is the folder with its configurations if the package has none. What it
    says about its prediction type and zero terminal SNR holds unless given here.
    `vae` is the folder or file of an autoencoder that replaces the base's; `clip_skip` chooses the text encoders' layer.
    `weights=random` initialises the same networks randomly, from the configurations in `name` if it is a folder, else
    from the package's configurations of `architecture`: for offline tests and benchmarks.
    """
    check_options(weights, prediction_type, prompt_chunks, empty_caption)
    embedded = find_embedded_models()
    source = str(embedded.get(name, name))
    if weights == "pretrained" and (file := Path(source).expanduser()).is_file():
        checkpoint = read_checkpoint_header(file)
        prediction_type = checkpoint.choose_prediction_type(prediction_type)
        zero_terminal_snr = zero_terminal_snr or checkpoint.has_zero_terminal_snr
        model = load_checkpoint_file(checkpoint, architecture, prediction_type, ("vae",) if vae else ())
    elif weights == "pretrained":
        model = load_pretrained(source, revision, variant)
    else:
        model = build_untrained(find_configs(source, architecture), choose_part_dtype)
    if vae is not None:
        from sdft.models.autoencoder import load_autoencoder

        model.vae = load_autoencoder(vae, model.vae.config)
    model.name, model.prompt_chunks = f"sdft/assets/{name}" if name in embedded else name, prompt_chunks
    if empty_caption is not None:
        if model.empty_caption is None:
            raise ValueError(f"model.empty_caption={empty_caption}: {model.family} always encodes the empty caption")
        model.empty_caption = empty_caption
    if clip_skip is not None:
        model.set_clip_skip(clip_skip)
    if prediction_type not in (None, model.prediction_type) or zero_terminal_snr:
        replace_noise_process(model, prediction_type or model.prediction_type, zero_terminal_snr)
    return model


def replace_noise_process(model: DiffusionModel, prediction_type: str, zero_terminal_snr: bool) -> None:
    model.scheduler = change_prediction_type(model.scheduler, prediction_type, zero_terminal_snr)
    model.noise_process = VariancePreservingProcess(model.scheduler.config)


def check_options(weights: str, prediction_type: str | None, prompt_chunks: int, empty_caption: str | None) -> None:
    if weights not in WEIGHT_SOURCES:
        raise ValueError(f"model.weights={weights}: choose one of {', '.join(WEIGHT_SOURCES)}")
    if prompt_chunks < 1:
        raise ValueError(f"prompt_chunks={prompt_chunks}: choose 1 or more; each chunk holds 75 tokens")
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(f"model.prediction_type={prediction_type}: choose one of {', '.join(PREDICTION_TYPES)}")
    if empty_caption not in (None, *EMPTY_CAPTIONS):
        raise ValueError(f"model.empty_caption={empty_caption}: choose one of {', '.join(EMPTY_CAPTIONS)}")


def load_pretrained(name: str, revision: str | None = None, variant: str | None = None) -> DiffusionModel:
    """The pretrained model of a folder or hub id; `ValueError` if it is missing, unsafe or of another family."""
    check_local_model(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = download_model(name, revision, variant)
        check_model_folder(folder)
    return load_folder(folder, variant)


def load_checkpoint_file(
    file: CheckpointFile, architecture: str | None, prediction_type: str, skip: tuple[str, ...] = ()
) -> DiffusionModel:
    """The model in a file, with the networks in `skip` on the meta device; `ValueError` if it is incomplete.

    Its UNet predicts `prediction_type` if the file does not say.
    """
    from accelerate import init_empty_weights
    from transformers.utils import logging

    from sdft.models.single_file import load_weights

    logging.disable_progress_bar()  # of adapters that are loaded later
    is_bundled = architecture is None or architecture in find_bundled_configs()
    folder = file.find_configs() if is_bundled else Path(architecture).expanduser()
    check_model_folder(folder)
    with init_empty_weights():
        model = build_untrained(folder)
    load_weights(model, file, skip)
    layout, _ = file.layout
    model.checkpoint_prediction_type = file.detect_prediction_type(layout) or prediction_type
    if is_bundled and len(layout.bases) > 1:
        _, resolution = layout.bases[model.checkpoint_prediction_type]
        model.unet.register_to_config(sample_size=resolution // model.vae_scale_factor)
    if model.empty_caption:
        model.empty_caption = file.empty_caption
    share_file_digests(model, [file.path])
    return model


def check_local_model(name: str, prediction_type: str | None = None, vae: str | None = None) -> None:
    """`ValueError` for a folder or file that cannot be loaded, or a path that does not exist; reads no weights."""
    from sdft.models.autoencoder import check_autoencoder

    if vae is not None:
        check_autoencoder(vae)
    folder = find_embedded_models().get(name, Path(name).expanduser())
    if folder.is_file():
        read_checkpoint_header(folder).choose_prediction_type(prediction_type)
    elif folder.is_dir():
        check_model_folder(folder)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"model.name={name}: no such folder or file")


def download_model(name: str, revision: str | None, variant: str | None) -> Path:
    """Download a model from the hub, unless it is cached; return its folder."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # the error below suffices
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, variant=variant, use_safetensors=True))
    except (OSError, ValueError) as error:
        is_offline = "outgoing traffic has been disabled" in str(error) or "cached" in str(error)
        reason = "the hub cannot be reached" if is_offline else describe_error(error)
        raise ValueError(
            f"model.name={name}: no such folder, and not available from the hub ({reason}); "
            "choose a folder, or model.weights=random for random weights"
        ) from None


def find_configs(name: str, architecture: str | None) -> Path:
    """The folder with the config.json files of the networks."""
    if Path(name).expanduser().is_dir():
        check_model_folder(Path(name).expanduser())
        return Path(name).expanduser()
    bundled = find_bundled_configs()
    if architecture not in bundled:
        raise ValueError(
            f"model.architecture={architecture}: choose one of {', '.join(bundled)} for model.weights=random"
        )
    return bundled[architecture]

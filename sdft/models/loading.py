"""Load a model from a folder, the hub, the package, or a configuration with random weights."""

from contextlib import contextmanager
from pathlib import Path

import torch

from sdft.models.checkpoint_file import CheckpointFile, read_checkpoint_header
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.family import check_model_family, read_config
from sdft.models.noise_process import PREDICTION_TYPES, VariancePreservingProcess, compute_alphas_cumprod
from sdft.models.noise_schedulers import change_prediction_type
from sdft.models.safetensors_check import check_no_custom_code, choose_variants
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.files import get_identity
from sdft.runs.hashing import share_digests

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
) -> StableDiffusion:
    """An embedded model, a local folder or hub id in the diffusers layout, or a file in the original layout, in fp32.

    A file is recognised by its tensors; `architecture` is the folder with its configurations if the package has none. What it
    says about its prediction type and zero terminal SNR holds unless given here.
    `vae` is the folder or file of an autoencoder that replaces the base's.
    `weights=random` initialises the same networks randomly, from the configurations in `name` if it is a folder, else
    from the package's configurations of `architecture`: for offline tests and benchmarks.
    """
    if weights not in WEIGHT_SOURCES:
        raise ValueError(f"model.weights={weights}: choose one of {', '.join(WEIGHT_SOURCES)}")
    if prompt_chunks < 1:
        raise ValueError(f"prompt_chunks={prompt_chunks}: choose 1 or more; each chunk holds 75 tokens")
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(f"model.prediction_type={prediction_type}: choose one of {', '.join(PREDICTION_TYPES)}")
    embedded = find_embedded_models()
    source = str(embedded.get(name, name))
    if weights == "pretrained" and (file := Path(source).expanduser()).is_file():
        checkpoint = read_checkpoint_header(file)
        prediction_type = checkpoint.choose_prediction_type(prediction_type)
        zero_terminal_snr = zero_terminal_snr or checkpoint.has_zero_terminal_snr
        model = load_checkpoint_file(checkpoint, architecture, ("vae",) if vae else ())
    elif weights == "pretrained":
        model = load_pretrained(source, revision, variant)
    else:
        model = build_untrained(find_configs(source, architecture))
    if vae is not None:
        from sdft.models.autoencoder import load_autoencoder

        model.vae = load_autoencoder(vae, model.vae.config)
    model.name, model.prompt_chunks = f"sdft/assets/{name}" if name in embedded else name, prompt_chunks
    if prediction_type not in (None, model.prediction_type) or zero_terminal_snr:
        model.scheduler = change_prediction_type(
            model.scheduler, prediction_type or model.prediction_type, zero_terminal_snr
        )
        model.noise_process = VariancePreservingProcess(model.scheduler.config)
    return model


def load_pretrained(name: str, revision: str | None = None, variant: str | None = None) -> StableDiffusion:
    """The pretrained model of a folder or hub id, in fp32; `ValueError` if it is missing, unsafe or of another family."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights; downloads keep theirs
    check_local_model(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = download_model(name, revision, variant)
        check_model_folder(folder)
    variants = choose_variants(folder, variant)
    scheduler, tokenizer = load_scheduler(folder), load_tokenizer(folder)
    unet = load_network(UNet2DConditionModel, folder, "unet", variants, torch_dtype=torch.float32)
    vae = load_network(AutoencoderKL, folder, "vae", variants, torch_dtype=torch.float32)
    text_encoder = load_network(CLIPTextModel, folder, "text_encoder", variants, dtype=torch.float32)
    for network in (unet, vae):
        network.register_to_config(_name_or_path=None)  # keep local paths out of exported configurations
    model = StableDiffusion(unet, vae, text_encoder, tokenizer, scheduler)
    share_file_digests(model, sorted(folder.rglob("*.safetensors")))
    return model


def load_checkpoint_file(file: CheckpointFile, architecture: str | None, skip: tuple[str, ...] = ()) -> StableDiffusion:
    """The model in a file, in fp32, with the networks in `skip` on the meta device; `ValueError` if it is incomplete."""
    from accelerate import init_empty_weights

    from sdft.models.single_file import load_weights

    is_bundled = architecture is None or architecture in {file.parent.name for file in ASSETS_FOLDER.glob("*/unet")}
    folder = file.find_configs() if is_bundled else Path(architecture).expanduser()
    check_model_folder(folder)
    with init_empty_weights():
        model = build_untrained(folder)
    load_weights(model, file, skip)
    share_file_digests(model, [file.path])
    return model


def share_file_digests(model: StableDiffusion, files: list[Path]) -> None:
    """Share the digests of the model and its frozen parts with all models that these weights files are loaded into."""
    identities = tuple((file.resolve(), get_identity(file)) for file in files)
    for part in ("", "vae", *model.text_encoders):
        share_digests(model.get_submodule(part), (part, identities))


def find_embedded_models() -> dict[str, Path]:
    """Folders of the models in the package with weights, by name."""
    return {index.parent.name: index.parent for index in ASSETS_FOLDER.glob("*/model_index.json")}


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


def check_model_folder(folder: Path) -> None:
    """`ValueError` for a folder with code, of another family, or with parts that are missing or do not fit each other."""
    check_no_custom_code(folder)
    check_model_family(folder)


def load_network(network_class, folder: Path, part: str, variants: dict[str, str | None], **dtype):
    """One network of a model folder; `ValueError` if its weights are damaged or incomplete."""
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
    if missing := sorted(info["missing_keys"]):
        count = f" and {len(missing) - 1} more" * (len(missing) > 1)
        raise ValueError(f"model.name={folder}: the weights in {part}/ lack {missing[0]}{count}")
    return network


def load_tokenizer(folder: Path):
    """CLIP's tokenizer; `ValueError` if it is damaged or has more tokens than the text encoder."""
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer").is_dir():
        raise ValueError(f"model.name={folder}: no tokenizer/")
    with name_part_in_errors(folder, "tokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    config = read_config(folder, "text_encoder/config.json")
    size = (config.get("text_config") or config).get("vocab_size", len(tokenizer))
    if len(tokenizer) > size:
        raise ValueError(
            f"model.name={folder}: tokenizer/ has {len(tokenizer)} tokens, but text_encoder/ knows {size}; choose parts that fit"
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
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise ValueError(f"model.name={folder}: {part}/ cannot be loaded ({reason})") from None


def download_model(name: str, revision: str | None, variant: str | None) -> Path:
    """Download a model from the hub, unless it is cached; return its folder."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # the error below suffices
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, variant=variant, use_safetensors=True))
    except (OSError, ValueError) as error:
        is_offline = "outgoing traffic has been disabled" in str(error) or "cached" in str(error)
        reason = "the hub cannot be reached" if is_offline else str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.name={name}: no such folder, and not available from the hub ({reason}); "
            "choose a folder, or model.weights=random for random weights"
        ) from None


def load_scheduler(folder: Path):
    """The scheduler of scheduler_config.json; `ValueError` if its settings are invalid. `check_model_family` checks its class."""
    import diffusers

    config = read_config(folder, "scheduler/scheduler_config.json")
    with name_part_in_errors(folder, "scheduler"):
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
        compute_alphas_cumprod(scheduler.config)
    return scheduler


def find_configs(name: str, architecture: str | None) -> Path:
    """The folder with the config.json files of the networks."""
    if Path(name).expanduser().is_dir():
        check_model_folder(Path(name).expanduser())
        return Path(name).expanduser()
    if architecture is None or not (ASSETS_FOLDER / architecture).is_dir():
        supported = sorted(p.parent.name for p in ASSETS_FOLDER.glob("*/unet"))
        raise ValueError(
            f"model.architecture={architecture}: choose one of {', '.join(supported)} for model.weights=random"
        )
    return ASSETS_FOLDER / architecture


def build_untrained(folder: Path) -> StableDiffusion:
    """Networks with the configurations in `folder`, initialised from the global generator."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from sdft.models.clip_tokenizer import load_clip_tokenizer

    with name_part_in_errors(folder, "text_encoder"):
        text_config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    with name_part_in_errors(folder, "unet"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
    with name_part_in_errors(folder, "vae"):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
    with name_part_in_errors(folder, "text_encoder"):
        text_encoder = CLIPTextModel(text_config)
    with name_part_in_errors(folder, "tokenizer"):
        tokenizer = load_clip_tokenizer(folder / "tokenizer")
    return StableDiffusion(unet, vae, text_encoder, tokenizer, load_scheduler(folder))

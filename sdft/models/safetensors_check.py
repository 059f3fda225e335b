"""Security checks: weights must be safetensors, and a model folder must hold the five known parts and no code."""

from pathlib import Path

from sdft.runs.files import read_json

MODEL_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NETWORKS = ("unet", "vae", "text_encoder")
ALLOWED_LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")  # of the classes in model_index.json


def check_model_folder(folder: Path) -> None:
    """`ValueError` for a model folder that is incomplete or unsafe; reads no weights."""
    for part in MODEL_PARTS:
        if not (folder / part).is_dir():
            raise ValueError(f"model.name={folder}: no {part}/; a model folder holds {', '.join(MODEL_PARTS)}")
    check_no_custom_code(folder)
    for part in NETWORKS:
        files = sorted((folder / part).glob("*.safetensors"))
        if not files:
            existing = ", ".join(file.name for file in sorted((folder / part).iterdir())) or "nothing"
            raise ValueError(
                f"model.name={folder}: no .safetensors in {part}/, only {existing}; pickles can hold code "
                "and are not loaded"
            )
        for file in files:
            check_safetensors(file, "model.name")


def check_no_custom_code(folder: Path) -> None:
    """`ValueError` for configurations that name code outside the allowed libraries, which would otherwise be ignored."""
    index = read_json(folder / "model_index.json")
    classes = {key: value for key, value in index.items() if isinstance(value, list)}
    foreign = [key for key, value in classes.items() if value[:1] != [None] and value[0] not in ALLOWED_LIBRARIES]
    if foreign or isinstance(index.get("_class_name"), list):
        key = (foreign or ["_class_name"])[0]
        raise ValueError(f"model.name={folder}: model_index.json names custom code ({key}), which is not supported")
    for part in MODEL_PARTS:
        for file in sorted((folder / part).glob("*config.json")):
            if "auto_map" in read_json(file):
                raise ValueError(
                    f"model.name={folder}: {part}/{file.name} names custom code (auto_map), which is not supported"
                )


def check_safetensors(file: Path, key: str) -> None:
    """`ValueError` for weights that are not safetensors; pickles are not loaded, as they can hold code."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise ValueError(f"{key}={file}: only .safetensors files are supported; pickles can hold code")
    try:
        safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{key}={file}: not a safetensors file ({error})") from None

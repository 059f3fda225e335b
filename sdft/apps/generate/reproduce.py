"""Draw an image again from its metadata, with the same or with changed options. The metadata is untrusted."""

import re
from pathlib import Path

from omegaconf import OmegaConf

import sdft.apps.generate.png_metadata as metadata
from sdft.config import CONF
from sdft.models.embedded import find_embedded_models
from sdft.models.safetensors_check import check_safetensors
from sdft.models.sampling import GEOMETRY_OPTIONS

RESTORED_OPTIONS = ("negative_prompt", "seed", "steps", "guidance_scale", "scheduler", "strength", "width", "height")
NEUTRAL_OPTIONS = {
    "reproduce",
    "folder",
    "accelerator",
    "adapters",
    "run",
}  # options that change no image, or its files' places
MODEL_OPTIONS = {"model", "run", "adapters", "checkpoint", "weights", "strength"}
REPLACEMENT_HINTS = {
    "adapter": "give adapters=[FILE] to use another",
    "checkpoint": "give run=… to use another",
}


def restore_options(image_metadata: dict, overrides: set[str], where: str) -> dict:
    """Options that `image_metadata` stands for, except `overrides`; `ValueError` if a file is missing or has changed.

    `_target_`s are fixed here: metadata supplies only arguments.
    """
    options = {key: image_metadata[key] for key in RESTORED_OPTIONS} | {
        "prompts": [image_metadata["prompt"]],
        "images": 1,
    }
    options |= {key: image_metadata[key] for key in GEOMETRY_OPTIONS if key in image_metadata}
    options["precision"] = {
        "_target_": "sdft.training.precision.Precision",
        "compute_dtype": image_metadata["precision"],
        "tf32": image_metadata["tf32"],
    }
    if "resolution" in overrides:
        options["width"] = options["height"] = None
    if "run" in overrides or {"x.run", "y.run", "x.rank", "y.rank"} & overrides:
        return exclude_overrides(options | {"checkpoint": image_metadata["checkpoint"]}, overrides)
    steps = bool({"checkpoint", "x.checkpoint", "y.checkpoint"} & overrides)
    if image_metadata["run"] and not {"model", "adapters"} & overrides and (steps or not image_metadata["adapters"]):
        return exclude_overrides(options | resolve_run(image_metadata, where, steps), overrides)
    if "model" not in overrides:
        options["model"] = restore_model_config(image_metadata, where)
    if "adapters" not in overrides:
        options["adapters"] = [str(file) for file in resolve_adapters(image_metadata, where)]
    options["weights"] = [one["weight"] for one in image_metadata["adapters"]]
    if {"x.weights", "y.weights"} & overrides:
        options.pop("weights")
    return exclude_overrides(options, overrides)


def exclude_overrides(options: dict, overrides: set[str]) -> dict:
    return {key: value for key, value in options.items() if key not in overrides}


def resolve_run(image_metadata: dict, where: str, steps: bool) -> dict:
    """The run in the metadata and, unless `steps` are overridden, its unchanged checkpoint."""
    run = Path(image_metadata["run"]).expanduser()
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{where}: run {image_metadata['run']} not found; give run=FOLDER")
    if image_metadata["result"] and not steps:
        metadata.resolve_unchanged_file(image_metadata["result"], where, "checkpoint", REPLACEMENT_HINTS["checkpoint"])
    return {"run": str(run)} | ({} if steps else {"checkpoint": image_metadata["checkpoint"]})


def resolve_adapters(image_metadata: dict, where: str) -> list[Path]:
    files = [
        metadata.resolve_unchanged_file(one, where, "adapter", REPLACEMENT_HINTS["adapter"])
        for one in image_metadata["adapters"]
    ]
    for file in files:
        check_safetensors(file, f"{where}: adapter")
    return files


def restore_model_config(image_metadata: dict, where: str) -> dict:
    """The model config; Hub models must be in `conf/model/` without a revision, so metadata cannot trigger other downloads."""
    model = image_metadata["model"]
    files = CONF.glob("model/*.yaml")
    shipped = {OmegaConf.load(file).get("model", {}).get("name") for file in files if file.stem != "none"}
    path = Path(model["name"]).expanduser()
    is_local = path.is_dir() or (path.suffix == ".safetensors" and path.is_file())
    is_shipped = model["name"] in shipped | find_embedded_models().keys() and not (
        model["revision"] or model["variant"]
    )
    if not (is_shipped or is_local):
        revision = f" at revision {model['revision']}" if model["revision"] else ""
        raise ValueError(
            f"{where}: model {model['name']}{revision} is neither in conf/model/ nor a folder or file; give model=…"
        )
    if (name := model["architecture"]) is not None and not (re.fullmatch(r"[\w-]+", name) or Path(name).is_dir()):
        raise ValueError(f"{where}: model.architecture has the invalid value {name!r}")
    keys = [key.rstrip("?") for key in metadata.METADATA_STRUCTURE["model"]]
    arguments = {key: model[key] for key in keys if key in model}
    return {"_target_": "sdft.models.loading.load_stable_diffusion", **arguments}

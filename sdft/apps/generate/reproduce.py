"""A picture's own words, to make it again, or with some of them changed. The picture may be a stranger's."""

import re
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

import sdft.apps.generate.png_metadata as metadata
from sdft.config import CONF
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.safetensors_check import check_safetensors
from sdft.runs.hashing import hash_file

RESTORED_OPTIONS = ("negative_prompt", "seed", "steps", "guidance_scale", "scheduler", "strength", "width", "height")
NEUTRAL_OPTIONS = {"reproduce", "folder", "accelerator"}  # words that change no picture
MODEL_OPTIONS = {"model", "run", "adapters", "checkpoint", "weights", "strength"}
REPLACEMENT_HINTS = {
    "adapter": "give adapters=[FILE] to take another",
    "checkpoint": "give run=… to take another",
}


def restore_options(image_metadata: dict, given: set[str], where: str) -> dict:
    """The words that `image_metadata` stands for, but for those of `given`; every file is there, and as it was.

    What is built is named here and not by the picture, which only says with which words.
    """
    found = {key: image_metadata[key] for key in RESTORED_OPTIONS} | {
        "prompts": [image_metadata["prompt"]],
        "images": 1,
    }
    found["precision"] = {
        "_target_": "sdft.training.precision.Precision",
        "compute_dtype": image_metadata["precision"],
        "tf32": image_metadata["tf32"],
    }
    if "resolution" in given:
        found["width"] = found["height"] = None
    if "run" in given or {"x.run", "y.run", "x.rank", "y.rank"} & given:
        return exclude_given_options(found | {"checkpoint": image_metadata["checkpoint"]}, given)
    steps = bool({"checkpoint", "x.checkpoint", "y.checkpoint"} & given)
    if image_metadata["run"] and not {"model", "adapters"} & given and (steps or not image_metadata["adapters"]):
        return exclude_given_options(found | resolve_run(image_metadata, where, steps), given)
    if "model" not in given:
        found["model"] = restore_model_config(image_metadata, where)
    if "adapters" not in given:
        found["adapters"] = [str(file) for file in resolve_adapters(image_metadata, where)]
    found["weights"] = [one["weight"] for one in image_metadata["adapters"]]
    if {"x.weights", "y.weights"} & given:
        found.pop("weights")
    return exclude_given_options(found, given)


def exclude_given_options(found: dict, given: set[str]) -> dict:
    return {key: value for key, value in found.items() if key not in given}


def resolve_run(image_metadata: dict, where: str, steps: bool) -> dict:
    """The run that a picture names, and of it the checkpoint, which is as it was."""
    run = Path(image_metadata["run"]).expanduser()
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{where}: its run {image_metadata['run']} is not here; give run=FOLDER")
    if image_metadata["result"] and not steps:
        metadata.resolve_unchanged_file(image_metadata["result"], where, "checkpoint", REPLACEMENT_HINTS["checkpoint"])
    return {"run": str(run)} | ({} if steps else {"checkpoint": image_metadata["checkpoint"]})


def resolve_adapters(image_metadata: dict, where: str) -> list[Path]:
    files = [
        metadata.resolve_unchanged_file(one, where, "adapter", REPLACEMENT_HINTS["adapter"])
        for one in image_metadata["adapters"]
    ]
    for file in files:
        check_safetensors(file, f"{where}: its adapter")
    return files


def restore_model_config(image_metadata: dict, where: str) -> dict:
    """The model's words. Of the hub only what `conf/model/` names, at no revision: nobody else decides what is fetched."""
    model = image_metadata["model"]
    files = CONF.glob("model/*.yaml")
    shipped = {OmegaConf.load(file).get("model", {}).get("name") for file in files if file.stem != "none"}
    embedded = {index.parent.name for index in ASSETS_FOLDER.glob("*/model_index.json")}
    folder = Path(model["name"]).expanduser().is_dir()
    known = model["name"] in shipped | embedded and not (model["revision"] or model["variant"])
    if not (known or folder):
        revision = f" at revision {model['revision']}" if model["revision"] else ""
        raise ValueError(
            f"{where}: its model {model['name']}{revision} is none of conf/model/ and no folder here; give model=…"
        )
    if model["architecture"] is not None and not re.fullmatch(r"[\w-]+", model["architecture"]):
        raise ValueError(f"{where}: its model.architecture is {model['architecture']!r}, which cannot be")
    return {"_target_": "sdft.models.loading.load_stable_diffusion", **model}


def is_exact_reproduction(image_metadata: dict, given: set[str], adapters: list[Path], result: Path | None) -> bool:
    """Whether the picture itself is request for again: nothing is given but where the same files are."""
    if given - NEUTRAL_OPTIONS - {"adapters", "run"}:
        return False
    of_files = [hash_file(file) for file in [*adapters, *([result] if result else [])]]
    then = [*image_metadata["adapters"], *([image_metadata["result"]] if image_metadata["result"] else [])]
    return of_files == [one["digest"] for one in then]


def describe_environment_changes(image_metadata: dict, now: dict) -> str | None:
    """A line of what may make other pixels of the same words: libraries, the device, the number of threads."""
    here = {**now["made"], "sampler": now["sampler"]}
    then = {**image_metadata["made"], "sampler": image_metadata["sampler"]}
    names = [name for name in here if then.get(name) != here[name]]
    short = [f"{name} {str(then.get(name))[:30]} then, {here[name]} now" for name in names if name != "sampler"]
    short += ["the model's sampler is set otherwise"] if "sampler" in names else []
    return "; ".join(short) or None


def describe_pixel_difference(then: Path, now: Path) -> str:
    """Whether both pictures are the same."""
    one, other = (np.asarray(Image.open(file).convert("RGB"), np.int16) for file in (then, now))
    if one.shape != other.shape:
        return f"{then} is now of other width and height, whatever it says"
    most, share = int(np.abs(one - other).max()), float((one != other).any(-1).mean())
    return f"{then} to the bit" if not most else f"not {then}: {share:.1%} of the pixels differ, by up to {most} of 255"

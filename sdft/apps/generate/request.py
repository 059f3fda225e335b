"""Resolve the options of generate: from the command line, else from the reproduced image, the run, or the model."""

import math
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import sdft.apps.generate.png_metadata as metadata
import sdft.apps.generate.reproduce as reproduce
import sdft.runs.samples as samples
from sdft.apps.generate.axes import Axis, expand_all_checkpoints, fill_free_axes, parse_axis
from sdft.apps.generate.grid import GridCell, ImageGrid
from sdft.apps.load_model import FINAL_RESULT, resolve_model_config
from sdft.config import check_config, check_option_types
from sdft.data.prompts import MAX_PROMPT_CHARS, read_prompts
from sdft.models.sampling import GEOMETRY_OPTIONS, Sampling

SAMPLING_OPTIONS = ("steps", "guidance_scale", "images", "seed", "batch_size", "scheduler", "negative_prompt")
SAMPLING_OPTIONS += GEOMETRY_OPTIONS
INTEGER_OPTIONS = ("steps", "images", "seed", "batch_size", "resolution", "width", "height")
OPTION_TYPES = dict.fromkeys(INTEGER_OPTIONS, int | None) | dict.fromkeys(("guidance_scale", "strength"), float | None)
OPTION_TYPES |= dict.fromkeys(("run", "checkpoint", "scheduler", "negative_prompt", "accelerator"), str | None)
OPTION_TYPES |= {"prompt_chunks": int, "folder": str} | dict.fromkeys(GEOMETRY_OPTIONS, list[int] | None)
MAX_SIDE, MAX_PIXELS = 8192, 2048 * 2048  # of an image


def parse_request(request: DictConfig, overrides: set[str]) -> ImageGrid:
    """The grid to generate. `overrides` are the option names on the command line."""
    request = OmegaConf.create({"model": None, "precision": None} | OmegaConf.to_container(request, resolve=True))
    check_option_types(request, OPTION_TYPES)
    image_metadata = None
    if request.reproduce is not None and not isinstance(request.reproduce, str):
        raise ValueError(f"reproduce={request.reproduce}: give a PNG that generate wrote")
    if request.reproduce is not None:
        file = Path(request.reproduce).expanduser()
        image_metadata = metadata.read_png_metadata(file)
        request = OmegaConf.create(
            OmegaConf.to_container(request) | reproduce.restore_options(image_metadata, overrides, f"reproduce={file}")
        )
        if (
            "adapters" in overrides
            and "weights" not in overrides
            and len(request.adapters) != len(request.weights or [])
        ):
            request.weights = None  # they belong to the replaced adapters
        check_config(request)
    try:
        grid = build_image_grid(request)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("sampling.")) from None
    if image_metadata:
        pin_reproduction(grid, image_metadata, overrides)
    return grid


def pin_reproduction(grid: ImageGrid, image_metadata: dict, overrides: set[str]) -> None:
    """Fix the batch position if no option is changed, and the model's digest if the model is not overridden."""
    if not overrides - reproduce.NEUTRAL_OPTIONS:
        grid.batch_position = tuple(image_metadata["batch"])
    has_axes = any(option[:2] in ("x.", "y.") for option in overrides)
    if not overrides & reproduce.MODEL_OPTIONS and not has_axes:
        grid.digest = image_metadata["digest"]


def build_image_grid(request: DictConfig) -> ImageGrid:
    """Fill options that are not set from the run or the model; raises `ValueError` before anything is loaded."""
    x, y = parse_axis("x", request.x, request.run), parse_axis("y", request.y, request.run)
    if x and y and x.option == y.option:
        raise ValueError(f"x.{x.option} y.{y.option}: both axes have the same option; choose different ones")
    model_request = OmegaConf.create(OmegaConf.to_container(request))
    model_request.run = next((axis.values[0] for axis in (x, y) if axis and axis.option == "run"), request.run)
    if model_request.run is not None and request.run is None and request.model is not None:
        raise ValueError(f"run={model_request.run}: a run has its own model; remove model=…")
    cfg, run = resolve_model_config(model_request)
    x, y = expand_all_checkpoints(x, run), expand_all_checkpoints(y, run)
    sampling = resolve_sampling(request, cfg)
    prompts = select_prompts(request, run, x, y)
    images, seeds = sampling.images, [sampling.seed + number for number in range(sampling.images)]
    x, y = fill_free_axes(x, y, prompts, seeds)
    if any(axis and axis.option == "seed" and axis.values == seeds for axis in (x, y)):
        images = 1
    base_cell = GridCell(
        prompts[0],
        sampling.seed,
        1.0 if request.strength is None else request.strength,
        sampling.steps,
        sampling.guidance_scale,
        sampling.scheduler,
        run and str(run),
        None if request.checkpoint in (None, FINAL_RESULT) else request.checkpoint,
    )
    model_request.precision = request.precision or cfg.get("precision")
    grid = ImageGrid(model_request, sampling, resolve_image_size(request, cfg), prompts, images, base_cell, x, y)
    for cell in grid.cells:
        check_cell_limits(cell)
    return grid


def resolve_sampling(request: DictConfig, cfg: DictConfig) -> Sampling:
    defaults = {
        key: value
        for key, value in (cfg.get("sampling") or {}).items()
        if key in SAMPLING_OPTIONS and value is not None
    }
    sampling = Sampling(**defaults | {key: request[key] for key in SAMPLING_OPTIONS if request[key] is not None})
    if sampling.batch_size > metadata.MAX_METADATA_BATCH:
        raise ValueError(f"batch_size={sampling.batch_size}: choose {metadata.MAX_METADATA_BATCH} or less")
    return sampling


def select_prompts(request: DictConfig, run: Path | None, x: Axis | None, y: Axis | None) -> list[str]:
    """Prompts of an axis, of `prompts`, or of the run's sample images."""
    on_axis = next((axis.values for axis in (x, y) if axis and axis.option == "prompt"), None)
    if on_axis and request.prompts is not None and request.reproduce is None:
        raise ValueError("prompts: an axis sets the prompts; remove one of the two")
    prompts = on_axis or read_prompts(request.prompts) or (samples.read_sample_prompts(run) if run else [])
    if not prompts:
        raise ValueError("prompts=null: give a list, as 'prompts=[a cat,a dog]', or a text file with one per line")
    if too_long := [prompt for prompt in prompts if len(prompt) > MAX_PROMPT_CHARS]:
        raise ValueError(f"prompts: one has {len(too_long[0])} characters; at most {MAX_PROMPT_CHARS} are supported")
    return list(dict.fromkeys(prompts))


def resolve_image_size(request: DictConfig, cfg: DictConfig) -> tuple[int, int]:
    """Width and height in pixels; whether the model supports them is checked once it is loaded."""
    side = request.resolution or cfg.get("resolution")
    size = (request.width or side, request.height or side)
    for option, pixels in zip(("width", "height"), size, strict=True):
        if not pixels:
            raise ValueError(f"{option}=null: give resolution=PIXELS")
        if not 8 <= pixels <= MAX_SIDE:
            raise ValueError(f"{option}={pixels}: choose 8 to {MAX_SIDE} pixels")
        if pixels % 8:
            raise ValueError(f"{option}={pixels}: choose a multiple of 8, such as {max(8, round(pixels / 8) * 8)}")
    if math.prod(size) > MAX_PIXELS:
        raise ValueError(f"width={size[0]} height={size[1]}: choose at most {MAX_PIXELS} pixels, as 2048 × 2048")
    return size


def check_cell_limits(cell: GridCell) -> None:
    """Reject values that the metadata of an image cannot hold."""
    for option, value in {"strength": cell.strength, "guidance_scale": cell.guidance_scale}.items():
        if abs(value) > 1000:
            raise ValueError(f"{option}={value:g}: choose 1000 or less")
    if cell.seed > 2**63 - 1:
        raise ValueError(f"seed={cell.seed}: choose {2**63 - 1} or less")

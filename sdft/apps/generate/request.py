"""What generate is request: its own words, else those of a picture, of the run, or of the model."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import sdft.apps.generate.png_metadata as metadata
import sdft.apps.generate.reproduce as again
import sdft.runs.samples as drawn
from sdft.apps.generate.axes import Axis, expand_all_checkpoints, fill_free_axes, parse_axis
from sdft.apps.generate.grid import GridCell, ImageGrid
from sdft.apps.load_model import FINAL_RESULT, resolve_model_config
from sdft.config import check_config, check_option_types
from sdft.data.prompts import MAX_PROMPT_CHARS, read_prompts
from sdft.models.sampling import Sampling

SAMPLING_OPTIONS = ("steps", "guidance_scale", "images", "seed", "batch_size", "scheduler", "negative_prompt")
INTEGER_OPTIONS = ("steps", "images", "seed", "batch_size", "resolution", "width", "height")
OPTION_TYPES = dict.fromkeys(INTEGER_OPTIONS, int | None) | dict.fromkeys(("guidance_scale", "strength"), float | None)
OPTION_TYPES |= dict.fromkeys(("run", "checkpoint", "scheduler", "negative_prompt", "accelerator"), str | None)
OPTION_TYPES |= {"prompt_chunks": int, "folder": str}
MAX_SIDE = 8192  # pixels on a side


def parse_request(request: DictConfig, given: set[str]) -> tuple[ImageGrid, dict | None]:
    """What is to be made, and what the picture says that it is made from. `given` are the words on the command line."""
    request = OmegaConf.create({"model": None, "precision": None} | OmegaConf.to_container(request, resolve=True))
    check_option_types(request, OPTION_TYPES)
    image_metadata = None
    if request["reproduce"] is not None and not isinstance(request["reproduce"], str):
        raise ValueError(f"reproduce={request['reproduce']}: give a PNG that this program made")
    if request["reproduce"] is not None:
        file = Path(request["reproduce"]).expanduser()
        image_metadata = metadata.read_png_metadata(file)
        request = OmegaConf.create(
            OmegaConf.to_container(request) | again.restore_options(image_metadata, given, f"reproduce={file}")
        )
        if "adapters" in given and "weights" not in given and len(request.adapters) != len(request.weights or []):
            request.weights = None  # they were of others
        check_config(request)
    try:
        made = build_image_grid(request)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("sampling.")) from None
    found = made.model_requests[made.model_keys[made.cells[0]]]
    if image_metadata and again.is_exact_reproduction(
        image_metadata, given, found.adapters, found.result if found.is_checkpoint else None
    ):
        made.batch_position = tuple(image_metadata["batch"])
    if (
        image_metadata
        and not given & again.MODEL_OPTIONS
        and not {option for option in given if option[:2] in ("x.", "y.")}
    ):
        made.digest = image_metadata["digest"]
    return made, image_metadata


def build_image_grid(request: DictConfig) -> ImageGrid:
    """Every option that was not given is the run's, or the model's; `ValueError` before anything is loaded."""
    x, y = parse_axis("x", request.x, request.run), parse_axis("y", request.y, request.run)
    if x and y and x.option == y.option:
        raise ValueError(f"x.{x.option} y.{y.option}: both are the same; give another to one of them")
    start = OmegaConf.create(OmegaConf.to_container(request))
    start.run = next((one.values[0] for one in (x, y) if one and one.option == "run"), request.run)
    if start.run is not None and request.run is None and request.model is not None:
        raise ValueError(f"run={start.run}: brings its model; leave model=… out")
    cfg, run = resolve_model_config(start)
    x, y = expand_all_checkpoints(x, run), expand_all_checkpoints(y, run)
    sampling = resolve_sampling(request, cfg)
    prompts = select_prompts(request, run, x, y)
    images, seeds = sampling.images, [sampling.seed + number for number in range(sampling.images)]
    x, y = fill_free_axes(x, y, prompts, seeds)
    if any(one and one.option == "seed" and one.values == seeds for one in (x, y)):
        images = 1
    one = GridCell(
        prompts[0],
        sampling.seed,
        1.0 if request.strength is None else request.strength,
        sampling.steps,
        sampling.guidance_scale,
        sampling.scheduler,
        run and str(run),
        None if request.checkpoint in (None, FINAL_RESULT) else request.checkpoint,
    )
    start.precision = request.precision or cfg.get("precision")
    made = ImageGrid(start, sampling, resolve_image_size(request, cfg), prompts, images, one, x, y)
    for cell in made.cells:
        check_cell_limits(cell)
    return made


def resolve_sampling(request: DictConfig, cfg: DictConfig) -> Sampling:
    own = {
        key: value
        for key, value in (cfg.get("sampling") or {}).items()
        if key in SAMPLING_OPTIONS and value is not None
    }
    found = Sampling(**own | {key: request[key] for key in SAMPLING_OPTIONS if request[key] is not None})
    if found.batch_size > metadata.MAX_METADATA_BATCH:
        raise ValueError(f"batch_size={found.batch_size}: choose {metadata.MAX_METADATA_BATCH} or less")
    return found


def select_prompts(request: DictConfig, run: Path | None, x: Axis | None, y: Axis | None) -> list[str]:
    """Those that were given, of an axis, or that the run drew while it trained."""
    on_axis = next((one.values for one in (x, y) if one and one.option == "prompt"), None)
    if on_axis and request.prompts is not None and request["reproduce"] is None:
        raise ValueError("prompts: an axis gives them already; leave one of both out")
    found = on_axis or read_prompts(request.prompts) or (drawn.read_sample_prompts(run) if run else [])
    if not found:
        raise ValueError("prompts=null: give some, as 'prompts=[a cat,a dog]', or a text file with one a line")
    if long := [prompt for prompt in found if len(prompt) > MAX_PROMPT_CHARS]:
        raise ValueError(f"prompts: one is of {len(long[0])} letters; {MAX_PROMPT_CHARS} are the most")
    return list(dict.fromkeys(found))


def resolve_image_size(request: DictConfig, cfg: DictConfig) -> tuple[int, int]:
    """Width and height in pixels; the model is request later what they are multiples of."""
    side = request.resolution or cfg.get("resolution")
    found = (request.width or side, request.height or side)
    for option, pixels in zip(("width", "height"), found, strict=True):
        if not pixels:
            raise ValueError(f"{option}=null: give resolution=PIXELS")
        if not 8 <= pixels <= MAX_SIDE:
            raise ValueError(f"{option}={pixels}: choose 8 to {MAX_SIDE} pixels")
        if pixels % 8:
            raise ValueError(f"{option}={pixels}: choose a multiple of 8, such as {max(8, round(pixels / 8) * 8)}")
    return found


def check_cell_limits(cell: GridCell) -> None:
    """What a picture's file could not say again."""
    for option, value in {"strength": cell.strength, "guidance_scale": cell.guidance_scale}.items():
        if abs(value) > 1000:
            raise ValueError(f"{option}={value:g}: choose 1000 or less")
    if cell.seed > 2**63 - 1:
        raise ValueError(f"seed={cell.seed}: choose {2**63 - 1} or less")

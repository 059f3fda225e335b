"""What generate is asked: its own words, else those of a picture, of the run, or of the model."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import sdft.apps.generate.png_metadata as metadata
import sdft.apps.generate.reproduce as again
import sdft.runs.samples as drawn
from sdft.apps.generate.axes import Axis, axis, free, with_all
from sdft.apps.generate.grid import Cell, Generation
from sdft.apps.load_model import RESULT, config
from sdft.config import check, typed
from sdft.data.prompts import MOST, read_prompts
from sdft.models.sampling import Sampling

SAMPLING = ("steps", "guidance_scale", "images", "seed", "batch_size", "scheduler", "negative_prompt")
COUNTS = ("steps", "images", "seed", "batch_size", "resolution", "width", "height")
WORDS = dict.fromkeys(COUNTS, int | None) | dict.fromkeys(("guidance_scale", "strength"), float | None)
WORDS |= dict.fromkeys(("run", "checkpoint", "scheduler", "negative_prompt", "accelerator"), str | None)
WORDS |= {"prompt_chunks": int, "folder": str}
LARGEST = 8192  # pixels on a side


def order(asked: DictConfig, given: set[str]) -> tuple[Generation, dict | None]:
    """What is to be made, and what the picture says that it is made from. `given` are the words on the command line."""
    asked = OmegaConf.create({"model": None, "precision": None} | OmegaConf.to_container(asked, resolve=True))
    typed(asked, WORDS)
    told = None
    if asked["reproduce"] is not None and not isinstance(asked["reproduce"], str):
        raise ValueError(f"reproduce={asked['reproduce']}: give a PNG that this program made")
    if asked["reproduce"] is not None:
        file = Path(asked["reproduce"]).expanduser()
        told = metadata.read(file)
        asked = OmegaConf.create(OmegaConf.to_container(asked) | again.words(told, given, f"reproduce={file}"))
        if "adapters" in given and "weights" not in given and len(asked.adapters) != len(asked.weights or []):
            asked.weights = None  # they were of others
        check(asked)
    try:
        made = generation(asked)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("sampling.")) from None
    found = made.named[made.places[made.cells[0]]]
    if told and again.exact(told, given, found.adapters, found.result if found.checkpoint else None):
        made.again = tuple(told["batch"])
    if told and not given & again.OF_MODEL and not {word for word in given if word[:2] in ("x.", "y.")}:
        made.digest = told["digest"]
    return made, told


def generation(asked: DictConfig) -> Generation:
    """Every word that was not given is the run's, or the model's; `ValueError` before anything is loaded."""
    x, y = axis("x", asked.x, asked.run), axis("y", asked.y, asked.run)
    if x and y and x.word == y.word:
        raise ValueError(f"x.{x.word} y.{y.word}: both are the same; give another to one of them")
    start = OmegaConf.create(OmegaConf.to_container(asked))
    start.run = next((one.values[0] for one in (x, y) if one and one.word == "run"), asked.run)
    if start.run is not None and asked.run is None and asked.model is not None:
        raise ValueError(f"run={start.run}: brings its model; leave model=… out")
    cfg, run = config(start)
    x, y = with_all(x, run), with_all(y, run)
    sampling = sampling_of(asked, cfg)
    prompts = prompts_of(asked, run, x, y)
    images, seeds = sampling.images, [sampling.seed + number for number in range(sampling.images)]
    x, y = free(x, y, prompts, seeds)
    if any(one and one.word == "seed" and one.values == seeds for one in (x, y)):
        images = 1
    one = Cell(
        prompts[0],
        sampling.seed,
        1.0 if asked.strength is None else asked.strength,
        sampling.steps,
        sampling.guidance_scale,
        sampling.scheduler,
        run and str(run),
        None if asked.checkpoint in (None, RESULT) else asked.checkpoint,
    )
    start.precision = asked.precision or cfg.get("precision")
    made = Generation(start, sampling, size_of(asked, cfg), prompts, images, one, x, y)
    for cell in made.cells:
        within_limits(cell)
    return made


def sampling_of(asked: DictConfig, cfg: DictConfig) -> Sampling:
    own = {key: value for key, value in (cfg.get("sampling") or {}).items() if key in SAMPLING and value is not None}
    found = Sampling(**own | {key: asked[key] for key in SAMPLING if asked[key] is not None})
    if found.batch_size > metadata.BATCH:
        raise ValueError(f"batch_size={found.batch_size}: choose {metadata.BATCH} or less")
    return found


def prompts_of(asked: DictConfig, run: Path | None, x: Axis | None, y: Axis | None) -> list[str]:
    """Those that were given, of an axis, or that the run drew while it trained."""
    on_axis = next((one.values for one in (x, y) if one and one.word == "prompt"), None)
    if on_axis and asked.prompts is not None and asked["reproduce"] is None:
        raise ValueError("prompts: an axis gives them already; leave one of both out")
    found = on_axis or read_prompts(asked.prompts) or (drawn.prompts(run) if run else [])
    if not found:
        raise ValueError("prompts=null: give some, as 'prompts=[a cat,a dog]', or a text file with one a line")
    if long := [prompt for prompt in found if len(prompt) > MOST]:
        raise ValueError(f"prompts: one is of {len(long[0])} letters; {MOST} are the most")
    return list(dict.fromkeys(found))


def size_of(asked: DictConfig, cfg: DictConfig) -> tuple[int, int]:
    """Width and height in pixels; the model is asked later what they are multiples of."""
    side = asked.resolution or cfg.get("resolution")
    found = (asked.width or side, asked.height or side)
    for word, pixels in zip(("width", "height"), found, strict=True):
        if not pixels:
            raise ValueError(f"{word}=null: give resolution=PIXELS")
        if not 8 <= pixels <= LARGEST:
            raise ValueError(f"{word}={pixels}: choose 8 to {LARGEST} pixels")
        if pixels % 8:
            raise ValueError(f"{word}={pixels}: choose a multiple of 8, such as {max(8, round(pixels / 8) * 8)}")
    return found


def within_limits(cell: Cell) -> None:
    """What a picture's file could not say again."""
    for word, value in {"strength": cell.strength, "guidance_scale": cell.guidance_scale}.items():
        if abs(value) > 1000:
            raise ValueError(f"{word}={value:g}: choose 1000 or less")
    if cell.seed > 2**63 - 1:
        raise ValueError(f"seed={cell.seed}: choose {2**63 - 1} or less")

"""Pictures of every cell of a grid, which differ in what its axes say and in nothing else."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from inspect import signature
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import sdft.apps.generate.png_metadata as metadata
from sdft.apps.generate.adapter_scales import multiply_adapter_scales
from sdft.apps.generate.axes import Axis
from sdft.apps.load_model import LoadedModel, ModelRequest, open_model, resolve_model
from sdft.models.cpu_threads import choose_num_threads
from sdft.models.image_cache import slugify
from sdft.models.loading import load_stable_diffusion
from sdft.models.sampling import Sampling
from sdft.runs.hashing import hash_file

LIBRARIES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class GridCell:
    """One picture's words; `weights` are None for those that are request of all."""

    prompt: str
    seed: int
    strength: float
    steps: int
    guidance_scale: float
    scheduler: str | None = None
    run: str | None = None
    checkpoint: str | None = None
    weights: tuple[float, ...] | None = None

    @property
    def base_only(self) -> bool:
        """Whether it is of the base alone."""
        return self.strength == 0 or self.checkpoint == "0" or (bool(self.weights) and not any(self.weights))


@dataclass
class ImageGrid:
    """`request` names model, run and adapters; `one` is what all cells share but for the axes; each has `images` seeds.

    `again` is the size of the batch in which a picture was made that is to be repeated, and its place there; `digest` that of
    the weights it was made with. `files` and `last` are what has been made: the pictures, and what the last one's file says.
    """

    request: DictConfig
    sampling: Sampling
    size: tuple[int, int]
    prompts: list[str]
    images: int
    base_cell: GridCell
    x: Axis | None = None
    y: Axis | None = None
    batch_position: tuple[int, int] | None = None
    digest: str | None = None
    files: dict[GridCell, Path] = field(default_factory=dict)
    last_metadata: dict = field(default_factory=dict)

    def __post_init__(self):
        self.pages = [self.page(prompt) for prompt in self.prompts]
        if self.axis("prompt"):
            self.pages = self.pages[:1]
        self.cells = list(dict.fromkeys(cell for page in self.pages for row in page for cells in row for cell in cells))
        for cell in self.cells:
            self.sampling_of(cell)
        self.model_keys = {cell: self.place(cell) for cell in self.cells}
        self.model_requests = {place: self.find(place) for place in dict.fromkeys(self.model_keys.values())}
        for cell in self.cells:
            self.check_strength(cell)

    def axis(self, option: str) -> Axis | None:
        return next((one for one in (self.x, self.y) if one and one.option == option), None)

    def page(self, prompt: str) -> list[list[list[GridCell]]]:
        """The cells of one sheet: rows of columns of images."""
        return [
            [self.at(prompt, x, y) for x in range(count_axis_values(self.x))] for y in range(count_axis_values(self.y))
        ]

    def at(self, prompt: str, x: int, y: int) -> list[GridCell]:
        changes = {"prompt": prompt}
        for one, number in ((self.x, x), (self.y, y)):
            changes |= {one.option: one.values[number]} if one else {}
        cell = replace(self.base_cell, **changes)
        cell = (
            replace(cell, strength=0.0, checkpoint=None, weights=None) if cell.base_only else cell
        )  # all of them are one
        return [replace(cell, seed=cell.seed + number) for number in range(self.images)]

    def sampling_of(self, cell: GridCell) -> Sampling:
        words = {"steps": cell.steps, "guidance_scale": cell.guidance_scale, "scheduler": cell.scheduler}
        return replace(self.sampling, images=1, seed=cell.seed, **words)

    def place(self, cell: GridCell) -> tuple[str | None, str | None, bool]:
        """What has to be loaded for it: (run, checkpoint, whether the base alone)."""
        return (cell.run, None, True) if cell.base_only else (cell.run, cell.checkpoint, False)

    def words(self, place: tuple, **others) -> DictConfig:
        run, checkpoint, _ = place
        return OmegaConf.create(OmegaConf.to_container(self.request) | {"run": run, "checkpoint": checkpoint} | others)

    def find(self, place: tuple) -> ModelRequest:
        return resolve_model(self.words(place), base_only=place[2])

    def check_strength(self, cell: GridCell) -> None:
        """`ValueError` for strengths of what has none, and for weights that are not as many as adapters."""
        found = self.model_requests[self.model_keys[cell]]
        if cell.base_only:
            return
        if cell.strength != 1 and not found.supports_scaling:
            what = found.result or "a base without adapters"
            raise ValueError(f"strength={cell.strength:g}: {what} has none but 0 and 1; only an adapter has others")
        if cell.weights is not None and len(cell.weights) != len(found.weights):
            raise ValueError(f"weights={list(cell.weights)}: {len(cell.weights)} for {len(found.weights)} adapters")

    def draw(self, folder: Path) -> Iterator[GridCell]:
        """Every cell once its picture is on disk, place by place; a model is loaded for each place."""
        groups = defaultdict(list)
        for cell in self.cells:
            groups[self.model_keys[cell]].append(cell)
        for place, cells in groups.items():
            opened = open_model(self.words(place, weights=None), base_only=place[2], compute_digest=True)
            if self.digest not in (None, opened.digest):
                raise ValueError(
                    f"the weights of {opened.model.name} are others now (SHA-256 {self.digest} then, {opened.digest} now); "
                    "give model=… or run=… to take them as they are"
                )
            for side, pixels in zip(("width", "height"), self.size, strict=True):
                opened.model.latent_shape(pixels, side)
            files = self.files_of(place)
            alike = defaultdict(list)
            for cell in cells:
                alike[replace(cell, prompt="", seed=0)].append(cell)
            for same in alike.values():
                yield from self.batches(folder, opened, same, files)
            del opened

    def files_of(self, place: tuple) -> dict:
        """What pictures tell of the files that are loaded for them: adapters, and a checkpoint."""
        found, base_only = self.model_requests[place], place[2]
        result = found.result if found.is_checkpoint and not base_only else None
        return {
            "result": {"file": metadata.shorten_path(result), "digest": hash_file(result)} if result else None,
            "adapters": [metadata.describe_adapter_file(file) for file in found.adapters if not base_only],
        }

    def batches(self, folder: Path, opened: LoadedModel, cells: list[GridCell], files: dict) -> Iterator[GridCell]:
        """Cells that differ in prompt and seed alone; `files` are those they are made with."""
        sampling, found = self.sampling_of(cells[0]), self.model_requests[self.model_keys[cells[0]]]
        weights = [] if cells[0].base_only else list(cells[0].weights or found.weights)
        of_files = files["adapters"]
        adapters = [file | {"weight": weight} for file, weight in zip(of_files, weights, strict=bool(of_files))]
        own = dict(zip(opened.adapter_names, weights, strict=True)) if opened.adapter_names else {}
        size = self.batch_position[0] if self.batch_position else sampling.batch_size
        drawing = replace(sampling, batch_size=size)
        for start in range(0, len(cells), size):
            batch = cells[start : start + size]
            request = [(cell.prompt, cell.seed) for cell in batch]
            request = request * size if self.batch_position else request
            with multiply_adapter_scales(
                opened.model, {name: weight * cells[0].strength for name, weight in own.items()}
            ):
                pictures = list(drawing.sample_images(opened.model, request, self.size))
            for number, cell in enumerate(batch):
                position = self.batch_position[1] if self.batch_position else number
                image_metadata = self.image_metadata(cell, opened, found, len(request)) | files
                image_metadata |= {"adapters": adapters, "batch": [len(request), position]}
                yield self.keep(folder, cell, pictures[position], image_metadata)

    def keep(self, folder: Path, cell: GridCell, picture: Image.Image, image_metadata: dict) -> GridCell:
        number = self.cells.index(cell)
        self.files[cell] = folder / f"{number:04d}-{slugify(cell.prompt) or 'picture'}-{cell.seed}.png"
        self.last_metadata = image_metadata
        metadata.save_png_with_metadata(picture, self.files[cell], image_metadata)
        return cell

    def image_metadata(self, cell: GridCell, opened: LoadedModel, found: ModelRequest, batch: int) -> dict:
        """What the picture's file says of how it was made, in a batch of so many."""
        sampling = self.sampling_of(cell)
        cell_words = {key: value for key, value in asdict(cell).items() if key not in ("run", "checkpoint", "weights")}
        sampler = json.loads(sampling.create_scheduler(opened.model).to_json_string())
        precision = self.request.get("precision") or {}
        device, shape = opened.model.unet.device, opened.model.batch_shape(batch, self.size)
        return {
            **cell_words,
            "negative_prompt": sampling.negative_prompt,
            "width": self.size[0],
            "height": self.size[1],
            "precision": str(opened.model.compute_dtype).removeprefix("torch."),
            "tf32": bool(precision.get("tf32", False)),
            "model": collect_model_options(opened.cfg),
            "digest": opened.digest,
            "run": metadata.shorten_path(found.run) if found.run and not cell.base_only else None,
            "checkpoint": cell.checkpoint if found.result and not cell.base_only else None,
            "sampler": {key: to_json_value(value) for key, value in sampler.items() if key != "_diffusers_version"},
            "made": {"device": describe_device(device), "threads": choose_num_threads(opened.model.unet, shape)}
            | {name: version(name) for name in LIBRARIES},
        }


def count_axis_values(axis: Axis | None) -> int:
    return len(axis.values) if axis else 1


def to_json_value(value):
    """What JSON has no option for, as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def collect_model_options(cfg: DictConfig) -> dict:
    """What `load` takes, its defaults among it, without this machine's folders."""
    own = {name: one.default for name, one in signature(load_stable_diffusion).parameters.items()}
    words = {name: cfg.model.get(name, default) for name, default in own.items()}
    return words | {"name": metadata.shorten_path(words["name"])}


def describe_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

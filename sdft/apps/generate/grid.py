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
from sdft.apps.generate.adapter_scales import strengths
from sdft.apps.generate.axes import Axis
from sdft.apps.load_model import Named, Opened, named, open_model
from sdft.models.cpu_threads import threads
from sdft.models.image_cache import slug
from sdft.models.loading import load
from sdft.models.sampling import Sampling
from sdft.runs.hashing import of_file

LIBRARIES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Cell:
    """One picture's words; `weights` are None for those that are asked of all."""

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
    def bare(self) -> bool:
        """Whether it is of the base alone."""
        return self.strength == 0 or self.checkpoint == "0" or (bool(self.weights) and not any(self.weights))


@dataclass
class Generation:
    """`asked` names model, run and adapters; `one` is what all cells share but for the axes; each has `images` seeds.

    `again` is the size of the batch in which a picture was made that is to be repeated, and its place there; `digest` that of
    the weights it was made with. `files` and `last` are what has been made: the pictures, and what the last one's file says.
    """

    asked: DictConfig
    sampling: Sampling
    size: tuple[int, int]
    prompts: list[str]
    images: int
    one: Cell
    x: Axis | None = None
    y: Axis | None = None
    again: tuple[int, int] | None = None
    digest: str | None = None
    files: dict[Cell, Path] = field(default_factory=dict)
    last: dict = field(default_factory=dict)

    def __post_init__(self):
        self.pages = [self.page(prompt) for prompt in self.prompts]
        if self.axis("prompt"):
            self.pages = self.pages[:1]
        self.cells = list(dict.fromkeys(cell for page in self.pages for row in page for cells in row for cell in cells))
        for cell in self.cells:
            self.sampling_of(cell)
        self.places = {cell: self.place(cell) for cell in self.cells}
        self.named = {place: self.find(place) for place in dict.fromkeys(self.places.values())}
        for cell in self.cells:
            self.check_strength(cell)

    def axis(self, word: str) -> Axis | None:
        return next((one for one in (self.x, self.y) if one and one.word == word), None)

    def page(self, prompt: str) -> list[list[list[Cell]]]:
        """The cells of one sheet: rows of columns of images."""
        return [[self.at(prompt, x, y) for x in range(count(self.x))] for y in range(count(self.y))]

    def at(self, prompt: str, x: int, y: int) -> list[Cell]:
        changes = {"prompt": prompt}
        for one, number in ((self.x, x), (self.y, y)):
            changes |= {one.word: one.values[number]} if one else {}
        cell = replace(self.one, **changes)
        cell = replace(cell, strength=0.0, checkpoint=None, weights=None) if cell.bare else cell  # all of them are one
        return [replace(cell, seed=cell.seed + number) for number in range(self.images)]

    def sampling_of(self, cell: Cell) -> Sampling:
        words = {"steps": cell.steps, "guidance_scale": cell.guidance_scale, "scheduler": cell.scheduler}
        return replace(self.sampling, images=1, seed=cell.seed, **words)

    def place(self, cell: Cell) -> tuple[str | None, str | None, bool]:
        """What has to be loaded for it: (run, checkpoint, whether the base alone)."""
        return (cell.run, None, True) if cell.bare else (cell.run, cell.checkpoint, False)

    def words(self, place: tuple, **others) -> DictConfig:
        run, checkpoint, _ = place
        return OmegaConf.create(OmegaConf.to_container(self.asked) | {"run": run, "checkpoint": checkpoint} | others)

    def find(self, place: tuple) -> Named:
        return named(self.words(place), bare=place[2])

    def check_strength(self, cell: Cell) -> None:
        """`ValueError` for strengths of what has none, and for weights that are not as many as adapters."""
        found = self.named[self.places[cell]]
        if cell.bare:
            return
        if cell.strength != 1 and not found.scalable:
            what = found.result or "a base without adapters"
            raise ValueError(f"strength={cell.strength:g}: {what} has none but 0 and 1; only an adapter has others")
        if cell.weights is not None and len(cell.weights) != len(found.weights):
            raise ValueError(f"weights={list(cell.weights)}: {len(cell.weights)} for {len(found.weights)} adapters")

    def draw(self, folder: Path) -> Iterator[Cell]:
        """Every cell once its picture is on disk, place by place; a model is loaded for each place."""
        groups = defaultdict(list)
        for cell in self.cells:
            groups[self.places[cell]].append(cell)
        for place, cells in groups.items():
            opened = open_model(self.words(place, weights=None), bare=place[2], digested=True)
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
        found, bare = self.named[place], place[2]
        result = found.result if found.checkpoint and not bare else None
        return {
            "result": {"file": metadata.shown_path(result), "digest": of_file(result)} if result else None,
            "adapters": [metadata.adapter(file) for file in found.adapters if not bare],
        }

    def batches(self, folder: Path, opened: Opened, cells: list[Cell], files: dict) -> Iterator[Cell]:
        """Cells that differ in prompt and seed alone; `files` are those they are made with."""
        sampling, found = self.sampling_of(cells[0]), self.named[self.places[cells[0]]]
        weights = [] if cells[0].bare else list(cells[0].weights or found.weights)
        of_files = files["adapters"]
        adapters = [file | {"weight": weight} for file, weight in zip(of_files, weights, strict=bool(of_files))]
        own = dict(zip(opened.names, weights, strict=True)) if opened.names else {}
        size = self.again[0] if self.again else sampling.batch_size
        drawing = replace(sampling, batch_size=size)
        for start in range(0, len(cells), size):
            batch = cells[start : start + size]
            asked = [(cell.prompt, cell.seed) for cell in batch]
            asked = asked * size if self.again else asked
            with strengths(opened.model, {name: weight * cells[0].strength for name, weight in own.items()}):
                pictures = list(drawing.pictures(opened.model, asked, self.size))
            for number, cell in enumerate(batch):
                position = self.again[1] if self.again else number
                told = self.told(cell, opened, found, len(asked)) | files
                told |= {"adapters": adapters, "batch": [len(asked), position]}
                yield self.keep(folder, cell, pictures[position], told)

    def keep(self, folder: Path, cell: Cell, picture: Image.Image, told: dict) -> Cell:
        number = self.cells.index(cell)
        self.files[cell] = folder / f"{number:04d}-{slug(cell.prompt) or 'picture'}-{cell.seed}.png"
        self.last = told
        metadata.save(picture, self.files[cell], told)
        return cell

    def told(self, cell: Cell, opened: Opened, found: Named, batch: int) -> dict:
        """What the picture's file says of how it was made, in a batch of so many."""
        sampling = self.sampling_of(cell)
        cell_words = {key: value for key, value in asdict(cell).items() if key not in ("run", "checkpoint", "weights")}
        sampler = json.loads(sampling.scheduler_of(opened.model).to_json_string())
        precision = self.asked.get("precision") or {}
        device, shape = opened.model.unet.device, opened.model.batch_shape(batch, self.size)
        return {
            **cell_words,
            "negative_prompt": sampling.negative_prompt,
            "width": self.size[0],
            "height": self.size[1],
            "precision": str(opened.model.compute).removeprefix("torch."),
            "tf32": bool(precision.get("tf32", False)),
            "model": model_words(opened.cfg),
            "digest": opened.digest,
            "run": metadata.shown_path(found.run) if found.run and not cell.bare else None,
            "checkpoint": cell.checkpoint if found.result and not cell.bare else None,
            "sampler": {key: plain(value) for key, value in sampler.items() if key != "_diffusers_version"},
            "made": {"device": device_of(device), "threads": threads(opened.model.unet, shape)}
            | {name: version(name) for name in LIBRARIES},
        }


def count(axis: Axis | None) -> int:
    return len(axis.values) if axis else 1


def plain(value):
    """What JSON has no word for, as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def model_words(cfg: DictConfig) -> dict:
    """What `load` takes, its defaults among it, without this machine's folders."""
    own = {name: one.default for name, one in signature(load).parameters.items()}
    words = {name: cfg.model.get(name, default) for name, default in own.items()}
    return words | {"name": metadata.shown_path(words["name"])}


def device_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

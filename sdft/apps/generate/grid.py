"""Image grid: one image per cell; cells differ only in the options on the axes."""

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
from sdft.apps.generate.axes import Axis
from sdft.apps.load_model import LoadedModel, ModelRequest, open_model, resolve_model
from sdft.lora.scaling import scale_adapters
from sdft.models.cpu_threads import choose_num_threads
from sdft.models.image_cache import slugify
from sdft.models.loading import load_stable_diffusion
from sdft.models.sampling import Sampling
from sdft.runs.hashing import hash_file

LIBRARIES = ("torch", "diffusers", "transformers", "peft")

ModelKey = tuple[str | None, str | None, bool]  # run, checkpoint, base only: cells with equal keys use the same model


@dataclass(frozen=True)
class GridCell:
    """Options of one image; `weights` None takes those of the request."""

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
        """Whether the image is generated without adapters and trained weights."""
        return self.strength == 0 or self.checkpoint == "0" or (bool(self.weights) and not any(self.weights))


@dataclass
class ImageGrid:
    """`request` names model, run and adapters; `base_cell` holds what cells share except for the axes; each has `images` seeds.

    To reproduce an image, `batch_position` is the size of its batch and its index there, and `digest` that of the model.
    `files` are the images written so far, `last_metadata` the metadata of the last one.
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
        self.pages = [self.build_page(prompt) for prompt in self.prompts]
        if self.find_axis("prompt"):
            self.pages = self.pages[:1]
        self.cells = list(dict.fromkeys(cell for page in self.pages for row in page for cells in row for cell in cells))
        for cell in self.cells:
            self.build_sampling(cell)
        self.model_keys = {cell: get_model_key(cell) for cell in self.cells}
        self.model_requests = {key: self.resolve_request(key) for key in dict.fromkeys(self.model_keys.values())}
        for cell in self.cells:
            self.check_strength(cell)

    def find_axis(self, option: str) -> Axis | None:
        return next((axis for axis in (self.x, self.y) if axis and axis.option == option), None)

    def build_page(self, prompt: str) -> list[list[list[GridCell]]]:
        """Cells of one sheet, `[row][column][image]`."""
        columns, rows = count_axis_values(self.x), count_axis_values(self.y)
        return [[self.build_cells(prompt, x, y) for x in range(columns)] for y in range(rows)]

    def build_cells(self, prompt: str, x: int, y: int) -> list[GridCell]:
        changes = {"prompt": prompt}
        for axis, index in ((self.x, x), (self.y, y)):
            changes |= {axis.option: axis.values[index]} if axis else {}
        cell = replace(self.base_cell, **changes)
        if cell.base_only:  # equal cells are generated once
            cell = replace(cell, strength=0.0, checkpoint=None, weights=None)
        return [replace(cell, seed=cell.seed + number) for number in range(self.images)]

    def build_sampling(self, cell: GridCell) -> Sampling:
        options = {"steps": cell.steps, "guidance_scale": cell.guidance_scale, "scheduler": cell.scheduler}
        return replace(self.sampling, images=1, seed=cell.seed, **options)

    def build_model_cfg(self, key: ModelKey, **changes) -> DictConfig:
        run, checkpoint, _ = key
        return OmegaConf.create(OmegaConf.to_container(self.request) | {"run": run, "checkpoint": checkpoint} | changes)

    def resolve_request(self, key: ModelKey) -> ModelRequest:
        return resolve_model(self.build_model_cfg(key), base_only=key[2])

    def check_strength(self, cell: GridCell) -> None:
        """`ValueError` for a strength of a model that has none, and for a wrong number of weights."""
        request = self.model_requests[self.model_keys[cell]]
        if cell.base_only:
            return
        if cell.strength != 1 and not request.supports_scaling:
            model = request.result or "a base without adapters"
            raise ValueError(f"strength={cell.strength:g}: {model} supports only 0 and 1; other values need an adapter")
        if cell.weights is not None and len(cell.weights) != len(request.weights):
            raise ValueError(f"weights={list(cell.weights)}: {len(cell.weights)} for {len(request.weights)} adapters")

    def generate_images(self, folder: Path) -> Iterator[GridCell]:
        """Yield each cell once its image is on disk; loads one model at a time."""
        groups = defaultdict(list)
        for cell in self.cells:
            groups[self.model_keys[cell]].append(cell)
        for key, cells in groups.items():
            loaded = open_model(self.build_model_cfg(key, weights=None), base_only=key[2], compute_digest=True)
            if self.digest not in (None, loaded.digest):
                raise ValueError(
                    f"the weights of {loaded.model.name} have changed (SHA-256 {self.digest} then, {loaded.digest} now); "
                    "give model=… or run=… to use the current ones"
                )
            self.sampling.check(loaded.model)
            for side, pixels in zip(("width", "height"), self.size, strict=True):
                loaded.model.latent_shape(pixels, side)
            files = self.describe_files(key)
            batchable = defaultdict(list)
            for cell in cells:
                batchable[replace(cell, prompt="", seed=0)].append(cell)
            for group in batchable.values():
                yield from self.generate_batches(folder, loaded, group, files)
            del loaded

    def describe_files(self, key: ModelKey) -> dict:
        """Metadata of the files behind a model: adapters and checkpoint."""
        request, base_only = self.model_requests[key], key[2]
        result = request.result if request.is_checkpoint and not base_only else None
        return {
            "result": {"file": metadata.shorten_path(result), "digest": hash_file(result)} if result else None,
            "adapters": [metadata.describe_adapter_file(file) for file in request.adapters if not base_only],
        }

    def generate_batches(
        self, folder: Path, loaded: LoadedModel, cells: list[GridCell], files: dict
    ) -> Iterator[GridCell]:
        """Generate cells that differ only in prompt and seed; `files` is `describe_files` of their model."""
        sampling, request = self.build_sampling(cells[0]), self.model_requests[self.model_keys[cells[0]]]
        weights = [] if cells[0].base_only else list(cells[0].weights or request.weights)
        adapter_files = files["adapters"]
        adapters = [
            file | {"weight": weight} for file, weight in zip(adapter_files, weights, strict=bool(adapter_files))
        ]
        scales = dict(zip(loaded.adapter_names, weights, strict=True)) if loaded.adapter_names else {}
        scales = {name: weight * cells[0].strength for name, weight in scales.items()}
        size = self.batch_position[0] if self.batch_position else sampling.batch_size
        sampling = replace(sampling, batch_size=size)
        for start in range(0, len(cells), size):
            batch = cells[start : start + size]
            prompts = [(cell.prompt, cell.seed) for cell in batch]
            prompts = prompts * size if self.batch_position else prompts
            with scale_adapters(loaded.model, scales):
                images = list(sampling.sample_images(loaded.model, prompts, self.size))
            for number, cell in enumerate(batch):
                position = self.batch_position[1] if self.batch_position else number
                image_metadata = self.build_metadata(cell, loaded, request, len(prompts)) | files
                image_metadata |= {"adapters": adapters, "batch": [len(prompts), position]}
                yield self.save_image(folder, cell, images[position], image_metadata)

    def save_image(self, folder: Path, cell: GridCell, image: Image.Image, image_metadata: dict) -> GridCell:
        number = self.cells.index(cell)
        self.last_metadata = image_metadata
        self.files[cell] = folder / f"{number:04d}-{slugify(cell.prompt) or 'image'}-{cell.seed}.png"
        metadata.save_png_with_metadata(image, self.files[cell], image_metadata)
        return cell

    def build_metadata(self, cell: GridCell, loaded: LoadedModel, request: ModelRequest, batch_size: int) -> dict:
        """Metadata of one image of a batch, without files, adapters and batch."""
        sampling = self.build_sampling(cell)
        options = {key: value for key, value in asdict(cell).items() if key not in ("run", "checkpoint", "weights")}
        sampler = json.loads(sampling.create_scheduler(loaded.model).to_json_string())
        precision = self.request.get("precision") or {}
        device, shape = loaded.model.unet.device, loaded.model.batch_shape(batch_size, self.size)
        return {
            **options,
            "negative_prompt": sampling.negative_prompt,
            **{key: list(value) for key, value in sampling.geometry_options.items()},
            "width": self.size[0],
            "height": self.size[1],
            "precision": str(loaded.model.compute_dtype).removeprefix("torch."),
            "tf32": bool(precision) and torch.backends.cudnn.allow_tf32,
            "model": collect_model_options(loaded.cfg),
            "digest": loaded.digest,
            "run": metadata.shorten_path(request.run) if request.run and not cell.base_only else None,
            "checkpoint": cell.checkpoint if request.result and not cell.base_only else None,
            "sampler": {key: to_json_value(value) for key, value in sampler.items() if key != "_diffusers_version"},
            "created": {"device": describe_device(device), "threads": choose_num_threads(loaded.model.unet, shape)}
            | {name: version(name) for name in LIBRARIES},
        }


def get_model_key(cell: GridCell) -> ModelKey:
    return (cell.run, None, True) if cell.base_only else (cell.run, cell.checkpoint, False)


def count_axis_values(axis: Axis | None) -> int:
    return len(axis.values) if axis else 1


def to_json_value(value):
    """Convert NaN/Inf, which JSON lacks, to text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def collect_model_options(cfg: DictConfig) -> dict:
    """Arguments of `load_stable_diffusion`, including defaults, without this machine's folders."""
    defaults = {name: one.default for name, one in signature(load_stable_diffusion).parameters.items()}
    options = {name: cfg.model.get(name, default) for name, default in defaults.items()}
    paths = {key: metadata.shorten_path(options[key]) for key in ("name", "architecture", "vae") if options[key]}
    return options | paths


def describe_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

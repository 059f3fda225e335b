"""Training samples by number: sample `n` of a run depends on (seed, n) only."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, default_collate

from sdft.data.batch_sampler import SamplingPlan, StepSizes
from sdft.data.buckets import Size, choose_bucket, choose_bucket_step
from sdft.data.compact_lists import TextLists
from sdft.data.contact_sheet import ContactSheet
from sdft.data.dataset import ImageDataset
from sdft.data.images import crop_with_mask, locate_crop
from sdft.data.tensor_cache import KEY_SIZE
from sdft.data.transforms import ImageSubset
from sdft.models.conditioning import describe_geometry
from sdft.rng import Draw, draw_pyramid_noise, make_generator

CROP_MODES = ("buckets", "center", "random")
CACHE_MODES = ("disk", "ram", "off")
RESOLUTION_RANGE = (8, 8192)  # pixels
CENTER = (0.5, 0.5)
OPTIONAL_DRAWS = {  # entries of a sample that some losses read
    "perturbation": Draw.PERTURBATION,
    "offset": Draw.OFFSET,
    "direction": Draw.DIRECTION,
    "guidance": Draw.GUIDANCE,
}


@dataclass
class DataSettings:
    """Options that turn images into samples. `resolution` is in pixels; each image is also used at `extra_resolutions`;
    `dropout` is the fraction of samples without caption.

    `crop`: buckets keep each image's aspect ratio, at about resolution² pixels and enlarged at most about `max_upscale` times
    (0: unlimited); center and random cut a square. `shuffle_tags` shuffles the comma-separated tags of a caption, except the
    first `keep_tags`.
    """

    resolution: int
    extra_resolutions: list[int] = field(default_factory=list)
    seed: int = 0
    crop: str = "buckets"
    max_upscale: float = 2.0
    flip: bool = False
    dropout: float = 0.0
    shuffle_tags: bool = False
    keep_tags: int = 1
    pyramid_noise: float = 0.0
    cache: str = "disk"

    def __post_init__(self):
        for key, choices in {"crop": CROP_MODES, "cache": CACHE_MODES}.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}={getattr(self, key)}: choose one of {', '.join(choices)}")
        for key in ("resolution", "extra_resolutions"):
            value = getattr(self, key)
            for side in [value] if key == "resolution" else value:
                if not RESOLUTION_RANGE[0] <= side <= RESOLUTION_RANGE[1]:
                    raise ValueError(
                        f"{key}={value}: choose pixels from {RESOLUTION_RANGE[0]} to {RESOLUTION_RANGE[1]}"
                    )
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"caption_dropout={self.dropout}: choose from 0 to 1")
        if self.max_upscale and self.max_upscale < 1:
            raise ValueError(f"max_upscale={self.max_upscale}: choose 1 or more, or 0 for unlimited")
        if self.keep_tags < 0:
            raise ValueError(f"keep_tags={self.keep_tags}: choose 0 or more")
        if not 0 <= self.pyramid_noise < 1:
            raise ValueError(
                f"pyramid_noise={self.pyramid_noise}: choose from 0 (off) to 1 (excluded); 0.3 is a common value"
            )

    def repeat_for_resolutions(self, source: ImageDataset) -> ImageDataset:
        """Return the images once per resolution."""
        if not self.extra_resolutions:
            return source
        return ImageSubset(source, [*range(len(source))] * (1 + len(self.extra_resolutions)))

    def choose_target_sizes(self, source: ImageDataset, unit: int) -> list[Size]:
        """Training size of each image of `repeat_for_resolutions`; sides are multiples of the model's `unit`."""
        target_sizes, original_sizes = [], source.sizes()
        for resolution in (self.resolution, *self.extra_resolutions):
            if self.crop == "buckets":
                step = choose_bucket_step(resolution, unit)
                buckets = {
                    size: choose_bucket(size, resolution, step, self.max_upscale) for size in set(original_sizes)
                }
                target_sizes += [buckets[size] for size in original_sizes]
            else:
                target_sizes += [(resolution, resolution)] * len(source)
        return target_sizes

    def build_plan(self, source: ImageDataset, unit: int, samples_per_step: int | StepSizes) -> SamplingPlan:
        """Assign images to optimizer steps of `samples_per_step` samples."""
        return SamplingPlan(self.seed, self.choose_target_sizes(source, unit), samples_per_step)

    def build_dataset(
        self, source: ImageDataset, model, name: str = Draw.TRAINING_IMAGES, samples_per_step: int | StepSizes = 1
    ) -> "TrainingDataset":
        return TrainingDataset(self, source, model, name, samples_per_step)


class TrainingDataset(Dataset):
    """Map sample numbers to tensors. Each epoch visits every image once in a new order; random draws depend on the number.

    `latents` and `texts` are caches of autoencoder and text-encoder outputs, if these are precomputed: samples then hold
    `mean` and `std` instead of `pixels`, and the text outputs, such as `context`, instead of `ids`.
    """

    collate = staticmethod(default_collate)

    def __init__(
        self, settings: DataSettings, source: ImageDataset, model, name: str, samples_per_step: int | StepSizes
    ):
        """`name` separates the random draws of several datasets in one run; a step takes `samples_per_step` samples."""
        self.settings, self.name = settings, name
        self.channels, *_ = (model.latent_shape(r)[0] for r in (settings.resolution, *settings.extra_resolutions))
        self.factor = model.vae_scale_factor
        self.sizes = settings.choose_target_sizes(source, model.size_multiple)
        self.plan, self.datasets = SamplingPlan(settings.seed, self.sizes, samples_per_step), [self]
        self.source = settings.repeat_for_resolutions(source)
        self.original_sizes = np.array(self.source.sizes(), dtype=np.int32)
        self.contact_sheet = ContactSheet(self.source, self.sizes)
        captions = self.source.all_captions()
        self.captions = captions if isinstance(captions, TextLists) else TextLists(captions)
        self.tokenizer = model.prompt_tokenizer
        self.latents = self.texts = None
        self.target_sizes: list[Size] = []  # sizes of the paired images, if samples are paired
        self.required_draws = set(OPTIONAL_DRAWS)  # a run sets those that its losses read
        self.has_geometry = "geometry" in model.image_inputs

    def __len__(self):
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, float]) -> dict[str, Tensor]:
        """Return sample `number`, or (number, sample weight), see `sdft.data.batch_sampler.TrainingBatchSampler`."""
        number, sample_weight = key if isinstance(key, tuple) else (key, 1.0)
        return self.load_sample(number, sample_weight)

    def load_sample(self, number: int, sample_weight: float = 1.0, size: Size | None = None) -> dict[str, Tensor]:
        """A sample; weights of 1 are left out, as most are."""
        index = self.plan.image_index(number)
        size = size or self.sizes[index]
        crop_position = (
            tuple(self.draw_uniform(number, Draw.CROP, 2).tolist()) if self.settings.crop == "random" else CENTER
        )
        flip = self.settings.flip and bool(self.draw_uniform(number, Draw.FLIP) < 0.5)
        return {
            **self.load_image_tensors(index, size, crop_position, flip),
            **self.describe_geometry(index, size, crop_position, flip),
            **self.load_text_tensors(self.draw_caption(index, number)),
            **self.draw_noise(number, size),
            "timestep_draw": self.draw_uniform(number, Draw.TIMESTEP)[0],
            **({"sample_weight": torch.tensor(sample_weight)} if sample_weight != 1 else {}),
        }

    def load_fixed_sample(self, index: int, timestep_fraction: float) -> dict[str, Tensor]:
        """Image `index`, center-cropped, at `timestep_fraction` (0..1) of the noise schedule, with fixed noise."""
        return {
            **self.load_image_tensors(index, self.sizes[index]),
            **self.describe_geometry(index, self.sizes[index]),
            **self.load_text_tensors(self.tokenizer.encode(self.captions[index][0])),
            **self.draw_noise((Draw.FIXED, index, timestep_fraction), self.sizes[index]),
            "timestep_fraction": torch.tensor(timestep_fraction),
        }

    def load_image_tensors(
        self, index: int, size: Size, crop_position: tuple[float, float] = CENTER, flip: bool = False
    ) -> dict[str, Tensor]:
        if self.latents is not None:
            return self.latents[self.latent_key(index, size, flip)]
        return self.decode_pixels(index, size, crop_position, flip)

    def decode_pixels(
        self, index: int, size: Size, crop_position: tuple[float, float] = CENTER, flip: bool = False
    ) -> dict[str, Tensor]:
        """Return `pixels` `[3, h, w]` and the equally cropped `mask` `[1, h/f, w/f]`, 0..1, at latent resolution."""
        sample, mask_shape = self.source.load_image(index, size), self.latent_shape(size)[1:]
        return crop_with_mask(sample.image, sample.mask, size, mask_shape, crop_position, flip)

    def describe_geometry(
        self, index: int, size: Size, crop_position: tuple[float, float] = CENTER, flip: bool = False
    ) -> dict[str, Tensor]:
        """`geometry` `[6]`: size of the image file, place and size of its crop, if the model takes it."""
        if not self.has_geometry:
            return {}
        original = tuple(self.original_sizes[index].tolist())
        return {"geometry": describe_geometry(original, locate_crop(original, size, crop_position, flip), size)}

    def draw_caption(self, index: int, number: int) -> Tensor:
        """Token ids `[tokens]` of one of the image's captions, or of the empty caption, drawn by sample number."""
        if self.settings.dropout and bool(self.draw_uniform(number, Draw.DROPOUT) < self.settings.dropout):
            return self.tokenizer.encode("")
        captions = self.captions[index]
        if self.source.cycles_captions:
            variant = number // self.plan.num_images % len(captions)
        else:
            variant = int(self.draw_uniform(number, Draw.CAPTION) * len(captions)) if len(captions) > 1 else 0
        if not self.settings.shuffle_tags:
            return self.tokenizer.encode(captions[variant])
        tags = [tag.strip() for tag in captions[variant].split(",")]
        fixed, movable = tags[: self.settings.keep_tags], tags[self.settings.keep_tags :]
        order = torch.randperm(len(movable), generator=self.build_generator(Draw.TAGS, number)).tolist()
        return self.tokenizer([", ".join([*fixed, *[movable[i] for i in order]])])[0]

    def load_text_tensors(self, ids: Tensor) -> dict[str, Tensor]:
        return {"ids": ids} if self.texts is None else self.texts[self.text_key(ids)]

    def draw_noise(self, number, size: Size) -> dict[str, Tensor]:
        shape, discount, required = self.latent_shape(size), self.settings.pyramid_noise, self.required_draws
        draws = {
            "posterior": self.draw_normal(number, Draw.POSTERIOR, shape),
            "noise": draw_pyramid_noise(shape, discount, self.build_generator(Draw.NOISE, number)),
        }
        for name in required - {"noise", "guidance"}:
            sides = (self.channels, 1, 1) if name == "offset" else shape
            draws[name] = self.draw_normal(number, OPTIONAL_DRAWS[name], sides)
        return draws | ({"guidance": self.draw_uniform(number, Draw.GUIDANCE)[0]} if "guidance" in required else {})

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """Latent `[channels, height, width]` of an image of `size`."""
        return self.channels, size[1] // self.factor, size[0] // self.factor

    def build_generator(self, purpose: str, number) -> Generator:
        return make_generator(self.settings.seed, self.name + purpose, number)

    def draw_uniform(self, number, purpose: str, count: int = 1) -> Tensor:
        return torch.rand(count, generator=self.build_generator(purpose, number))

    def draw_normal(self, number, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.build_generator(purpose, number))

    def list_target_sizes(self, index: int) -> list[Size]:
        """Every size at which the image is used."""
        return self.target_sizes or [self.sizes[index]]

    def latent_key(self, index: int, size: Size, flip: bool) -> bytes:
        """Cache key of the latents of an image; the autoencoder is not part of it."""
        return hashlib.sha256(f"{self.source.digest(index)} {size} {flip}".encode()).digest()[:KEY_SIZE]

    @staticmethod
    def text_key(ids: Tensor) -> bytes:
        """Cache key of the text outputs; the text encoders are not part of it."""
        return hashlib.sha256(ids.numpy().tobytes()).digest()[:KEY_SIZE]

"""Samples by number: what sample `n` of a run is depends on (seed, n) alone."""

import hashlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import Dataset, default_collate

from sdft.data.batch_sampler import SamplingPlan
from sdft.data.buckets import Size, choose_bucket, choose_bucket_step
from sdft.data.dataset import ImageDataset
from sdft.data.images import resize_and_crop
from sdft.data.transforms import ImageSubset
from sdft.rng import make_generator, pyramid_noise

CROP_MODES = ("buckets", "center", "random")
CACHE_MODES = ("disk", "ram", "off")
TIMESTEP_DISTRIBUTIONS = ("uniform", "logit_normal")  # the latter favours the middle (Esser et al., 2024)
RESOLUTION_RANGE = (8, 8192)  # pixels that a picture may be brought to
MIN_TIMESTEP_RANGE = 0.01  # of the noise schedule, which is ten timesteps
CENTER = (0.5, 0.5)


@dataclass
class DataSettings:
    """How pictures become samples: `resolution` in pixels, each picture at `extra_resolutions` too, `dropout` the share of
    samples that lose their caption, `timestep_range` the shares of the noise schedule between which timesteps are drawn.

    `crop`: buckets keep each picture's shape, at about resolution² pixels and enlarged at most about `max_upscale` times
    (0: any); center and random cut a square. `shuffle_tags` reorders what commas part in a caption, but for the first
    `keep_tags`.
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
    timestep_distribution: str = "uniform"
    timestep_range: list[float] = field(default_factory=lambda: [0.0, 1.0])
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
            raise ValueError(f"max_upscale={self.max_upscale}: choose 1 or more, or 0 for any")
        if self.keep_tags < 0:
            raise ValueError(f"keep_tags={self.keep_tags}: choose 0 or more")
        if not 0 <= self.pyramid_noise < 1:
            raise ValueError(
                f"pyramid_noise={self.pyramid_noise}: choose from 0 (off) up to, not including, 1; 0.3 is usual"
            )
        if self.timestep_distribution not in TIMESTEP_DISTRIBUTIONS:
            raise ValueError(
                f"dataset.timestep_distribution={self.timestep_distribution}: choose {' or '.join(TIMESTEP_DISTRIBUTIONS)}"
            )
        shares = list(self.timestep_range)
        if len(shares) != 2 or not 0 <= shares[0] <= shares[1] - MIN_TIMESTEP_RANGE <= 1 - MIN_TIMESTEP_RANGE:
            raise ValueError(
                f"dataset.timestep_range={shares}: choose two rising shares, {MIN_TIMESTEP_RANGE} or more apart, as [0.0,1.0]"
            )

    def repeat_for_resolutions(self, source: ImageDataset) -> ImageDataset:
        """The pictures, once for every resolution."""
        return (
            ImageSubset(source, [*range(len(source))] * (1 + len(self.extra_resolutions)))
            if self.extra_resolutions
            else source
        )

    def sizes(self, source: ImageDataset, unit: int) -> list[Size]:
        """What each picture that is `seen` is brought to: sides that are multiples of the model's `unit`."""
        sizes, whole = [], source.sizes()
        for resolution in (self.resolution, *self.extra_resolutions):
            if self.crop == "buckets":
                sides = choose_bucket_step(resolution, unit)
                brought = {size: choose_bucket(size, resolution, sides, self.max_upscale) for size in set(whole)}
                sizes += [brought[size] for size in whole]
            else:
                sizes += [(resolution, resolution)] * len(source)
        return sizes

    def plan(self, source: ImageDataset, unit: int, samples_per_step: int) -> SamplingPlan:
        """Which pictures make up which step of `samples_per_step` samples."""
        return SamplingPlan(self.seed, self.sizes(source, unit), samples_per_step)

    def samples(self, source: ImageDataset, model, name: str = "", samples_per_step: int = 1) -> "TrainingDataset":
        return TrainingDataset(self, source, model, name, samples_per_step)


class TrainingDataset(Dataset):
    """Sample number to tensors. Pictures come in a new order every epoch, each once an epoch; draws are the sample's own.

    `latents` and `contexts` are stores of what the autoencoder and the text encoder make of pictures and captions, when
    they are computed beforehand: samples then hold `mean` and `std` for `pixels`, and `context` for `ids`.
    """

    collate = staticmethod(default_collate)  # a batch from a list of samples

    def __init__(self, stream: DataSettings, source: ImageDataset, model, name: str = "", samples_per_step: int = 1):
        """`name` tells the draws of one stream from those of another in the same run; a step takes `samples_per_step` samples."""
        self.settings, self.name, self.tokenize = stream, name, model.tokenize
        self.channels, *_ = (model.latent_shape(r)[0] for r in (stream.resolution, *stream.extra_resolutions))
        self.factor, self.timesteps = model.vae_scale_factor, len(model.alphas_cumprod)
        self.sizes, self.keys = stream.sizes(source, model.size_multiple), {}
        self.plan, self.datasets = SamplingPlan(stream.seed, self.sizes, samples_per_step), [self]
        self.source = stream.repeat_for_resolutions(source)
        variants = self.source.all_captions()
        ids, self.empty_ids = model.tokenize([text for texts in variants for text in texts]), model.tokenize([""])[0]
        self.ids, self.all_captions = ids.split([len(texts) for texts in variants]), variants
        self.latents = self.contexts = None
        self.target_sizes: list[Size] = []  # of other pictures that these stand beside, and are brought to

    def __len__(self):
        return len(self.source)

    def __getitem__(self, which: int | tuple[int, float]) -> dict[str, Tensor]:
        """Sample `number`, or (number, share): what it counts in its batch, see `sdft.data.batch_sampler.TrainingBatchSampler`."""
        number, share = which if isinstance(which, tuple) else (which, 1.0)
        return self.load_sample(number, share)

    def load_sample(self, number: int, share: float = 1.0, size: Size | None = None) -> dict[str, Tensor]:
        index = self.plan.image_index(number)
        size = size or self.sizes[index]
        crop_position = tuple(self.uniform(number, "crop", 2).tolist()) if self.settings.crop == "random" else CENTER
        flip = self.settings.flip and bool(self.uniform(number, "flip") < 0.5)
        return {
            **self.load_image_tensors(index, size, crop_position, flip),
            **self.text(self.caption(index, number)),
            **self.noise(number, size),
            "timestep": self.timestep(number),
            "weight": torch.ones(()),
            "sample_weight": torch.tensor(share),
            "index": torch.tensor(index),
        }

    def load_fixed_sample(self, index: int, share: float) -> dict[str, Tensor]:
        """Picture `index`, centred, at `share` (0..1) of the timesteps, always with the same noise: to compare models by."""
        return {
            **self.load_image_tensors(index, self.sizes[index]),
            **self.text(self.ids[index][0]),
            **self.noise(("fixed", index, share), self.sizes[index]),
            "timestep": torch.tensor(int(share * self.timesteps)),
        }

    def load_image_tensors(
        self, index: int, size: Size, crop_position: tuple[float, float] = CENTER, flip: bool = False
    ) -> dict[str, Tensor]:
        if self.latents is not None:
            return self.latents[self.latent_key(index, size, flip)]
        return self.decode(index, size, crop_position, flip)

    def decode(
        self, index: int, size: Size, crop_position: tuple[float, float] = CENTER, flip: bool = False
    ) -> dict[str, Tensor]:
        """`pixels` `[3, h, w]` and, at the size of the latents, the `mask` `[1, h/f, w/f]`, 0..1, cropped like them."""
        picture, latent = self.source.load_image(index, size), self.shape(size)[1:]
        mask = torch.ones(1, *latent)
        if picture.mask is not None:
            mask = F.adaptive_avg_pool2d((resize_and_crop(picture.mask, size, crop_position, flip)[:1] + 1) / 2, latent)
        return {"pixels": resize_and_crop(picture.image, size, crop_position, flip), "mask": mask}

    def caption(self, index: int, number: int) -> Tensor:
        """Token ids `[tokens]` of one of the picture's captions, drawn by the sample's number, or of none."""
        if bool(self.uniform(number, "dropout") < self.settings.dropout):
            return self.empty_ids
        variant = int(self.uniform(number, "caption") * len(self.ids[index]))
        if not self.settings.shuffle_tags:
            return self.ids[index][variant]
        tags = [tag.strip() for tag in self.all_captions[index][variant].split(",")]
        kept, others = tags[: self.settings.keep_tags], tags[self.settings.keep_tags :]
        shuffled = torch.randperm(len(others), generator=self.chance("tags", number)).tolist()
        return self.tokenize([", ".join([*kept, *[others[i] for i in shuffled]])])[0]

    def text(self, ids: Tensor) -> dict[str, Tensor]:
        return {"ids": ids} if self.contexts is None else self.contexts[self.text_key(ids)]

    def noise(self, number, size: Size) -> dict[str, Tensor]:
        shape, discount = self.shape(size), self.settings.pyramid_noise
        return {
            "posterior": self.normal(number, "posterior", shape),
            "noise": pyramid_noise(shape, discount, self.chance("noise", number)),
            "perturbation": self.normal(number, "perturbation", shape),
            "offset": self.normal(number, "offset", (self.channels, 1, 1)),
            "direction": self.normal(number, "direction", shape),
            "guidance": self.uniform(number, "guidance")[0],
        }

    def timestep(self, number: int) -> Tensor:
        """One of the stream's range, by its distribution; a whole number `[]`."""
        chance, favoured = self.chance("timestep", number), self.settings.timestep_distribution == "logit_normal"
        share = torch.randn((), generator=chance).sigmoid() if favoured else torch.rand((), generator=chance)
        first, last = (round(edge * self.timesteps) for edge in self.settings.timestep_range)
        return (first + share * (last - first)).long().clamp(max=last - 1)

    def shape(self, size: Size) -> tuple[int, int, int]:
        """Of the latents of a picture."""
        return self.channels, size[1] // self.factor, size[0] // self.factor

    def chance(self, purpose: str, number) -> Generator:
        return make_generator(self.settings.seed, self.name + purpose, number)

    def uniform(self, number, purpose: str, count: int = 1) -> Tensor:
        return torch.rand(count, generator=self.chance(purpose, number))

    def normal(self, number, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.chance(purpose, number))

    def list_target_sizes(self, index: int) -> list[Size]:
        """Every size that the picture is brought to."""
        return self.target_sizes or [self.sizes[index]]

    def latent_key(self, index: int, size: Size, flip: bool) -> str:
        """What the latents of a picture depend on, besides the autoencoder."""
        if (index, size, flip) not in self.keys:
            known = f"{self.source.digest(index)} {size} {flip}"
            self.keys[index, size, flip] = hashlib.sha256(known.encode()).hexdigest()[:32]
        return self.keys[index, size, flip]

    @staticmethod
    def text_key(ids: Tensor) -> str:
        """What a context depends on, besides the text encoder."""
        return hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:32]

"""Samples by number: what sample `n` of a run is depends on (seed, n) alone."""

import hashlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import Dataset, default_collate

from sdft.data.batch_sampler import Plan
from sdft.data.buckets import Size, bucket, unit_of
from sdft.data.dataset import Source
from sdft.data.images import fit
from sdft.data.transforms import Part
from sdft.rng import generator, pyramid_noise

CROPS = ("buckets", "center", "random")
CACHES = ("disk", "ram", "off")
DISTRIBUTIONS = ("uniform", "logit_normal")  # the latter favours the middle (Esser et al., 2024)
SIDES = (8, 8192)  # pixels that a picture may be brought to
APART = 0.01  # of the noise schedule, which is ten timesteps
MIDDLE = (0.5, 0.5)


@dataclass
class Stream:
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
        for key, choices in {"crop": CROPS, "cache": CACHES}.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}={getattr(self, key)}: choose one of {', '.join(choices)}")
        for key in ("resolution", "extra_resolutions"):
            value = getattr(self, key)
            for side in [value] if key == "resolution" else value:
                if not SIDES[0] <= side <= SIDES[1]:
                    raise ValueError(f"{key}={value}: choose pixels from {SIDES[0]} to {SIDES[1]}")
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
        if self.timestep_distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"dataset.timestep_distribution={self.timestep_distribution}: choose {' or '.join(DISTRIBUTIONS)}"
            )
        shares = list(self.timestep_range)
        if len(shares) != 2 or not 0 <= shares[0] <= shares[1] - APART <= 1 - APART:
            raise ValueError(
                f"dataset.timestep_range={shares}: choose two rising shares, {APART} or more apart, as [0.0,1.0]"
            )

    def seen(self, source: Source) -> Source:
        """The pictures, once for every resolution."""
        return (
            Part(source, [*range(len(source))] * (1 + len(self.extra_resolutions))) if self.extra_resolutions else source
        )

    def sizes(self, source: Source, unit: int) -> list[Size]:
        """What each picture that is `seen` is brought to: sides that are multiples of the model's `unit`."""
        sizes, whole = [], source.sizes()
        for resolution in (self.resolution, *self.extra_resolutions):
            if self.crop == "buckets":
                sides = unit_of(resolution, unit)
                brought = {size: bucket(size, resolution, sides, self.max_upscale) for size in set(whole)}
                sizes += [brought[size] for size in whole]
            else:
                sizes += [(resolution, resolution)] * len(source)
        return sizes

    def plan(self, source: Source, unit: int, a_step: int) -> Plan:
        """Which pictures make up which step of `a_step` samples."""
        return Plan(self.seed, self.sizes(source, unit), a_step)

    def samples(self, source: Source, model, name: str = "", a_step: int = 1) -> "Samples":
        return Samples(self, source, model, name, a_step)


class Samples(Dataset):
    """Sample number to tensors. Pictures come in a new order every epoch, each once an epoch; draws are the sample's own.

    `latents` and `contexts` are stores of what the autoencoder and the text encoder make of pictures and captions, when
    they are computed beforehand: samples then hold `mean` and `std` for `pixels`, and `context` for `ids`.
    """

    collate = staticmethod(default_collate)  # a batch from a list of samples

    def __init__(self, stream: Stream, source: Source, model, name: str = "", a_step: int = 1):
        """`name` tells the draws of one stream from those of another in the same run; a step takes `a_step` samples."""
        self.settings, self.name, self.tokenize = stream, name, model.tokenize
        self.channels, *_ = (model.latent_shape(r)[0] for r in (stream.resolution, *stream.extra_resolutions))
        self.factor, self.timesteps = model.factor, len(model.alphas_cumprod)
        self.sizes, self.keys = stream.sizes(source, model.unit), {}
        self.plan, self.parts = Plan(stream.seed, self.sizes, a_step), [self]
        self.source = stream.seen(source)
        variants = self.source.variants()
        ids, self.empty = model.tokenize([text for texts in variants for text in texts]), model.tokenize([""])[0]
        self.ids, self.variants = ids.split([len(texts) for texts in variants]), variants
        self.latents = self.contexts = None
        self.shapes: list[Size] = []  # of other pictures that these stand beside, and are brought to

    def __len__(self):
        return len(self.source)

    def __getitem__(self, which: int | tuple[int, float]) -> dict[str, Tensor]:
        """Sample `number`, or (number, share): what it counts in its batch, see `sdft.data.batch_sampler.Numbers`."""
        number, share = which if isinstance(which, tuple) else (which, 1.0)
        return self.sample(number, share)

    def sample(self, number: int, share: float = 1.0, size: Size | None = None) -> dict[str, Tensor]:
        index = self.plan.picture(number)
        size = size or self.sizes[index]
        place = tuple(self.uniform(number, "crop", 2).tolist()) if self.settings.crop == "random" else MIDDLE
        flip = self.settings.flip and bool(self.uniform(number, "flip") < 0.5)
        return {
            **self.picture(index, size, place, flip),
            **self.text(self.caption(index, number)),
            **self.noise(number, size),
            "timestep": self.timestep(number),
            "weight": torch.ones(()),
            "share": torch.tensor(share),
            "index": torch.tensor(index),
        }

    def fixed(self, index: int, share: float) -> dict[str, Tensor]:
        """Picture `index`, centred, at `share` (0..1) of the timesteps, always with the same noise: to compare models by."""
        return {
            **self.picture(index, self.sizes[index]),
            **self.text(self.ids[index][0]),
            **self.noise(("fixed", index, share), self.sizes[index]),
            "timestep": torch.tensor(int(share * self.timesteps)),
        }

    def picture(
        self, index: int, size: Size, place: tuple[float, float] = MIDDLE, flip: bool = False
    ) -> dict[str, Tensor]:
        if self.latents is not None:
            return self.latents[self.latent_key(index, size, flip)]
        return self.decoded(index, size, place, flip)

    def decoded(
        self, index: int, size: Size, place: tuple[float, float] = MIDDLE, flip: bool = False
    ) -> dict[str, Tensor]:
        """`pixels` `[3, h, w]` and, at the size of the latents, the `mask` `[1, h/f, w/f]`, 0..1, cropped like them."""
        picture, latent = self.source.picture(index, size), self.shape(size)[1:]
        mask = torch.ones(1, *latent)
        if picture.mask is not None:
            mask = F.adaptive_avg_pool2d((fit(picture.mask, size, place, flip)[:1] + 1) / 2, latent)
        return {"pixels": fit(picture.image, size, place, flip), "mask": mask}

    def caption(self, index: int, number: int) -> Tensor:
        """Token ids `[tokens]` of one of the picture's captions, drawn by the sample's number, or of none."""
        if bool(self.uniform(number, "dropout") < self.settings.dropout):
            return self.empty
        variant = int(self.uniform(number, "caption") * len(self.ids[index]))
        if not self.settings.shuffle_tags:
            return self.ids[index][variant]
        tags = [tag.strip() for tag in self.variants[index][variant].split(",")]
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
        return generator(self.settings.seed, self.name + purpose, number)

    def uniform(self, number, purpose: str, count: int = 1) -> Tensor:
        return torch.rand(count, generator=self.chance(purpose, number))

    def normal(self, number, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.chance(purpose, number))

    def sizes_of(self, index: int) -> list[Size]:
        """Every size that the picture is brought to."""
        return self.shapes or [self.sizes[index]]

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

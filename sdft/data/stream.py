"""Samples by number: what sample `n` of a run is depends on (seed, n) alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sdft.data.images import fit
from sdft.data.source import Source
from sdft.draws import generator, order, pyramid_noise

CROPS = ("center", "random")
DISTRIBUTIONS = ("uniform", "logit_normal")  # the latter favours the middle (Esser et al., 2024)


@dataclass
class Stream:
    """How pictures become samples: `resolution` in pixels, `dropout` the share of samples that lose their caption,
    `timestep_range` the shares of the noise schedule between which timesteps are drawn."""

    resolution: int
    batch_size: int = 1
    seed: int = 0
    crop: str = "center"
    flip: bool = False
    dropout: float = 0.0
    pyramid_noise: float = 0.0
    timestep_distribution: str = "uniform"
    timestep_range: list[float] = field(default_factory=lambda: [0.0, 1.0])

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: choose 1 or more")
        if self.crop not in CROPS:
            raise ValueError(f"crop={self.crop}: choose one of {', '.join(CROPS)}")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"caption_dropout={self.dropout}: choose from 0 to 1")
        if not 0 <= self.pyramid_noise < 1:
            raise ValueError(
                f"pyramid_noise={self.pyramid_noise}: choose from 0 (off) up to, not including, 1; 0.3 is usual"
            )
        if self.timestep_distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"stream.timestep_distribution={self.timestep_distribution}: choose {' or '.join(DISTRIBUTIONS)}"
            )
        if len(self.timestep_range) != 2 or not 0 <= self.timestep_range[0] < self.timestep_range[1] <= 1:
            raise ValueError(
                f"stream.timestep_range={list(self.timestep_range)}: choose two rising shares, as [0.0,1.0]"
            )

    def samples(self, source: Source, model) -> "Samples":
        return Samples(self, source, model)


class Samples(Dataset):
    """Sample number to tensors. Images come in a new order every epoch, each once an epoch; draws are the sample's own."""

    def __init__(self, stream: Stream, source: Source, model):
        self.stream, self.source = stream, source
        self.latent_shape = model.latent_shape(stream.resolution)
        self.timesteps = len(model.alphas_cumprod)
        self.ids, self.empty = model.tokenize(source.captions()), model.tokenize([""])[0]
        self.epoch = (-1, torch.empty(0))

    def __len__(self):
        return len(self.source)

    def index(self, number: int) -> int:
        """The image that sample `number` shows."""
        epoch, place = divmod(number, len(self.source))
        if self.epoch[0] != epoch:
            self.epoch = (epoch, order(self.stream.seed, epoch, len(self.source)))
        return int(self.epoch[1][place])

    def uniform(self, number: int, purpose: str, count: int = 1) -> Tensor:
        return torch.rand(count, generator=generator(self.stream.seed, purpose, number))

    def normal(self, number: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator(self.stream.seed, purpose, number))

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        stream, index = self.stream, self.index(number)
        place = tuple(self.uniform(number, "crop", 2).tolist()) if stream.crop == "random" else (0.5, 0.5)
        flip = stream.flip and bool(self.uniform(number, "flip") < 0.5)
        dropped = bool(self.uniform(number, "dropout") < stream.dropout)
        return {
            "pixels": fit(self.source[index].image, stream.resolution, place, flip),
            "ids": self.empty if dropped else self.ids[index],
            **self.noise(number),
            "timestep": self.timestep(number),
            "weight": torch.ones(()),
            "index": torch.tensor(index),
        }

    def timestep(self, number: int) -> Tensor:
        """One of the stream's range, by its distribution; a whole number `[]`."""
        chance = generator(self.stream.seed, "timestep", number)
        share = torch.randn((), generator=chance).sigmoid() if self.logit_normal else torch.rand((), generator=chance)
        first, last = (round(edge * self.timesteps) for edge in self.stream.timestep_range)
        return (first + share * (last - first)).long().clamp(max=last - 1)

    @property
    def logit_normal(self) -> bool:
        return self.stream.timestep_distribution == "logit_normal"

    def noise(self, number) -> dict[str, Tensor]:
        return {
            "posterior": self.normal(number, "posterior", self.latent_shape),
            "noise": pyramid_noise(
                self.latent_shape, self.stream.pyramid_noise, generator(self.stream.seed, "noise", number)
            ),
            "perturbation": self.normal(number, "perturbation", self.latent_shape),
            "offset": self.normal(number, "offset", (self.latent_shape[0], 1, 1)),
        }

    def fixed(self, index: int, share: float) -> dict[str, Tensor]:
        """Image `index`, centred, at `share` (0..1) of the timesteps, always with the same noise: to compare models by."""
        return {
            "pixels": fit(self.source[index].image, self.stream.resolution),
            "ids": self.ids[index],
            **self.noise(("fixed", index, share)),
            "timestep": torch.tensor(int(share * self.timesteps)),
        }


class Numbers(Sampler):
    """The sample numbers that one process sees from `first` on: of every `world` batches, the one at its `rank`.

    Its length is that of the whole run, `last` samples, which is what Lightning counts a resumed run against.
    """

    def __init__(self, first: int, last: int, batch_size: int, rank: int, world: int):
        self.first, self.last, self.batch_size = first, last, batch_size
        self.rank, self.world = rank, world

    def __len__(self):
        return self.last // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[int]]:
        stride = self.batch_size * self.world
        for start in range(self.first + self.rank * self.batch_size, self.last, stride):
            yield list(range(start, start + self.batch_size))

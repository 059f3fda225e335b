"""Layers of a computed LoRA, with the error of their approximation."""

from dataclasses import dataclass, field

from torch import Tensor

from sdft.lora.low_rank import (
    LowRank,
    LowRankLayer,
    approximate_low_rank,
    build_low_rank_layer,
    compute_energy,
    compute_squared_distance,
)

PartLayers = dict[str, dict[str, LowRankLayer]]


@dataclass
class LowRankResult:
    """Layers, and the energy (squared norm) of the exact change and of the error of its approximation."""

    parts: PartLayers = field(default_factory=dict)
    total_energy: float = 0.0
    lost_energy: float = 0.0

    def add_layer(self, part: str, name: str, shape: tuple, exact: LowRank, product: LowRank, magnitude=None) -> None:
        self.total_energy += compute_energy(exact)
        self.lost_energy += 0.0 if product is exact else compute_squared_distance(exact, product)
        self.set_layer(part, name, shape, product, magnitude)

    def set_layer(self, part: str, name: str, shape: tuple, product: LowRank, magnitude=None) -> None:
        layer = build_low_rank_layer(product, shape)
        layer.magnitude = magnitude
        self.parts.setdefault(part, {})[name] = layer

    def add_nearest(self, part: str, name: str, change: Tensor, rank: int, energy: float | None = None) -> None:
        """Add the best approximation of at most `rank` to a full change `[out, in, ...]`."""
        matrix = change.flatten(1)
        product = approximate_low_rank(matrix, rank, energy)
        self.total_energy += (layer_energy := float(matrix.square().sum()))
        self.lost_energy += max(layer_energy - float((product[0].T @ matrix * product[1]).sum()), 0.0)
        self.set_layer(part, name, tuple(change.shape), product)

    @property
    def relative_error(self) -> float:
        """The norm of the error over that of the exact change, over all layers."""
        return (self.lost_energy / (self.total_energy or 1)) ** 0.5

    @property
    def energy_fraction(self) -> float:
        """The retained fraction of the energy of the exact change, over all layers."""
        return 1 - self.lost_energy / self.total_energy if self.total_energy else 1.0

    @property
    def ranks(self) -> list[int]:
        return sorted({layer.rank for layers in self.parts.values() for layer in layers.values()})

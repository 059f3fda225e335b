"""Mix LoRA files and reduce their rank, computed on their weight changes.

A file changes a weight by dW = alpha / rank * up @ down, and a mix is the weighted sum of dW. Adding the factors instead (up
to up, down to down) is different: (a + b)(c + d) has two additional products.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdft.lora.file import LoraFile, check_weight_count
from sdft.lora.low_rank import (
    LowRank,
    LowRankLayer,
    approximate_low_rank,
    build_low_rank_layer,
    compute_energy,
    compute_squared_distance,
    reduce_rank,
    sum_low_rank,
)

MERGE_METHODS = ("concat", "svd", "linear")
WEIGHT_SUMS = ("one", "any", "normalize")
PartLayers = dict[str, dict[str, LowRankLayer]]


@dataclass
class MixResult:
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


def normalize_weights(weights: list[float] | None, count: int, weight_sum: str) -> list[float]:
    """The weights to apply; `ValueError` unless there is one per file and their sum is as `weight_sum` requires."""
    if weight_sum not in WEIGHT_SUMS:
        raise ValueError(f"weight_sum={weight_sum}: choose one of {', '.join(WEIGHT_SUMS)}")
    if not count:
        raise ValueError("adapters=[]: give at least one LoRA file, or run or adapter folder")
    weights = [1 / count] * count if weights is None else check_weight_count(list(weights), count)
    if weight_sum == "one" and abs(sum(weights) - 1) > 1e-6:
        raise ValueError(
            f"weights={weights}: the sum is {sum(weights):.6g}, not 1; set weight_sum=any to use the weights as they are, "
            "or weight_sum=normalize to divide by the sum"
        )
    if weight_sum == "normalize" and abs(sum(weights)) < 1e-9:
        raise ValueError(f"weights={weights}: the sum is 0 and cannot be normalized; set weight_sum=any")
    return [weight / sum(weights) for weight in weights] if weight_sum == "normalize" else weights


def mix_lora_files(
    files: list[LoraFile], weights: list[float], merge_method: str = "concat", rank: int | None = None
) -> MixResult:
    """`concat`: the exact weighted sum, ranks add up; `svd`: its best approximation of `rank` (default: the highest rank);
    `linear`: the weighted sum of the factors, as in many tools, which differs (see `energy_fraction`).
    """
    check_mix(files, merge_method, rank)
    result, max_rank = MixResult(), max(layer.rank for file in files for layer in file.layers.values())
    for part, name in sorted({key for file in files for key in file.layers}, reverse=True):
        layers = [
            (w, file.layers[part, name]) for w, file in zip(weights, files, strict=True) if (part, name) in file.layers
        ]
        terms = [(weight, layer.to_low_rank()) for weight, layer in layers]
        exact = sum_low_rank(terms)
        if merge_method == "linear":
            product = sum_factors(terms, name)
        elif merge_method == "svd":
            product = reduce_rank(exact, rank or max_rank)
        else:  # no rank above that of the weight is needed
            product = exact if exact[0].shape[1] <= min(len(exact[0]), exact[1].shape[1]) else reduce_rank(exact)
        result.add_layer(part, name, layers[0][1].shape, exact, product)
    return result


def check_mix(files: list[LoraFile], merge_method: str, rank: int | None) -> None:
    if merge_method not in MERGE_METHODS:
        raise ValueError(f"merge_method={merge_method}: choose one of {', '.join(MERGE_METHODS)}")
    if rank is not None and merge_method != "svd":
        raise ValueError(f"rank={rank}: requires merge_method=svd, not merge_method={merge_method}")
    for file in files:
        if file.has_dora:
            raise ValueError(
                f"adapter={file.path}: DoRA cannot be mixed, as its change depends on the base weights; convert it to the "
                "nearest LoRA first: sdft convert adapter=FILE to=diffusers base=MODEL rank=32"
            )
    max_rank = sum(max(layer.rank for layer in file.layers.values()) for file in files)
    if rank is not None and not 1 <= rank <= max_rank:
        raise ValueError(f"rank={rank}: choose 1 to {max_rank}, the rank of the exact sum")
    shapes = {}
    for file in files:
        for (part, name), layer in file.layers.items():
            if layer.shape != shapes.setdefault((part, name), layer.shape):
                raise ValueError(
                    f"adapter={file.path}: architecture differs from {files[0].path} "
                    f"({part}.{name} is {list(layer.shape)} instead of {list(shapes[part, name])})"
                )


def sum_factors(terms: list[tuple[float, LowRank]], name: str) -> LowRank:
    """Sum the factors, each times the root of its weight; the sign goes to up."""
    if len(ranks := {len(down) for _, (_, down) in terms}) > 1:
        raise ValueError(
            f"merge_method=linear: the files have ranks {sorted(ranks)} in {name}; choose merge_method=concat or merge_method=svd"
        )
    signed = [(abs(w) ** 0.5, 1 if w >= 0 else -1, up, down) for w, (up, down) in terms]
    return sum(root * sign * up for root, sign, up, _ in signed), sum(root * down for root, _, _, down in signed)


def format_optional(value: float | None) -> str:
    return "null" if value is None else str(value)


def resize_lora_file(file: LoraFile, rank: int | None, energy: float | None) -> MixResult:
    """Approximate every layer with at most `rank`, or with the lowest rank that retains this fraction of its energy.

    DoRA magnitudes and layers of a lower rank are unchanged.
    """
    max_rank = max(layer.rank for layer in file.layers.values())
    if (rank is None) == (energy is None):
        raise ValueError(
            f"rank={format_optional(rank)} energy={format_optional(energy)}: give one of them, "
            f"such as rank={max(1, max_rank // 2)} or energy=0.95"
        )
    if rank is not None and not 1 <= rank <= max_rank:
        raise ValueError(f"rank={rank}: choose 1 to {max_rank}, the rank of {file.path.name}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: choose more than 0 and at most 1, such as 0.95")
    result = MixResult()
    for (part, name), layer in file.layers.items():
        exact = layer.to_low_rank()
        if not torch.count_nonzero(exact[0]) or not torch.count_nonzero(exact[1]):
            product = exact[0][:, :1], exact[1][:1]
        else:
            product = reduce_rank(exact, rank, energy)
        result.add_layer(part, name, layer.shape, exact, product, layer.magnitude)
    return result

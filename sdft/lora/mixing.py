"""LoRA files added up or made smaller, in the changes that they make to the weights.

A file changes a weight by dW = alpha / rank * up @ down, so the mix of files is the weighted sum of their dW. Adding up their
factors instead (up and up, down and down) is not that: (a + b)(c + d) has two products too many.
"""

from dataclasses import dataclass, field

import torch

from sdft.lora.file import LoraFile, check_weight_count
from sdft.lora.low_rank import (
    LowRank,
    LowRankLayer,
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
    """Layers, and how far they are from what was asked: squared norms of the exact change and of what is missing of it."""

    parts: PartLayers = field(default_factory=dict)
    total_energy: float = 0.0
    lost_energy: float = 0.0

    def add_layer(self, part: str, name: str, shape: tuple, exact: LowRank, product: LowRank, magnitude=None) -> None:
        self.total_energy += compute_energy(exact)
        self.lost_energy += 0.0 if product is exact else compute_squared_distance(exact, product)
        self.set_layer(part, name, shape, product, magnitude)

    def set_layer(self, part: str, name: str, shape: tuple, product: LowRank, magnitude=None) -> None:
        made = build_low_rank_layer(product, shape)
        made.magnitude = magnitude
        self.parts.setdefault(part, {})[name] = made

    @property
    def energy_fraction(self) -> float:
        """The share of the change's energy, its squared Frobenius norm over all layers, that is there."""
        return 1 - self.lost_energy / self.total_energy if self.total_energy else 1.0

    @property
    def ranks(self) -> list[int]:
        return sorted({layer.rank for layers in self.parts.values() for layer in layers.values()})


def normalize_weights(weights: list[float] | None, count: int, sums: str) -> list[float]:
    """The weights as they are applied; `ValueError` when they are not as many as files, or do not sum to 1 where they should."""
    if sums not in WEIGHT_SUMS:
        raise ValueError(f"weight_sum={sums}: choose one of {', '.join(WEIGHT_SUMS)}")
    if not count:
        raise ValueError("adapters=[]: give at least one LoRA file, or the folder of a run or an adapter")
    weights = [1 / count] * count if weights is None else check_weight_count(list(weights), count)
    if sums == "one" and abs(sum(weights) - 1) > 1e-6:
        raise ValueError(
            f"weights={weights}: they sum to {sum(weights):.6g}, not 1; give weight_sum=any to add the files up as strongly as that, "
            "or weight_sum=normalize to divide by the sum"
        )
    if sums == "normalize" and abs(sum(weights)) < 1e-9:
        raise ValueError(f"weights={weights}: they sum to 0, which nothing is divided by; give weight_sum=any")
    return [weight / sum(weights) for weight in weights] if sums == "normalize" else weights


def mix_lora_files(
    files: list[LoraFile], weights: list[float], merge_method: str = "concat", rank: int | None = None
) -> MixResult:
    """`concat`: the weighted sum itself, ranks add up; `svd`: the nearest to it of `rank`, by default the largest of the files';
    `linear`: factors added up as many tools do, which is something else, and `kept` says by how much.
    """
    check_mix(files, merge_method, rank)
    made, most = MixResult(), max(layer.rank for file in files for layer in file.layers.values())
    for part, name in sorted({key for file in files for key in file.layers}, reverse=True):
        mine = [
            (w, file.layers[part, name]) for w, file in zip(weights, files, strict=True) if (part, name) in file.layers
        ]
        exact = sum_low_rank([(weight, layer.to_low_rank()) for weight, layer in mine])
        if merge_method == "linear":
            product = sum_factors([(w, layer.to_low_rank()) for w, layer in mine], name)
        elif merge_method == "svd":
            product = reduce_rank(exact, rank or most)
        else:  # more than the weight has is never needed
            product = exact if exact[0].shape[1] <= min(len(exact[0]), exact[1].shape[1]) else reduce_rank(exact)
        made.add_layer(part, name, mine[0][1].shape, exact, product)
    return made


def check_mix(files: list[LoraFile], merge_method: str, rank: int | None) -> None:
    if merge_method not in MERGE_METHODS:
        raise ValueError(f"merge_method={merge_method}: choose one of {', '.join(MERGE_METHODS)}")
    if rank is not None and merge_method != "svd":
        raise ValueError(
            f"rank={rank}: goes with merge_method=svd; merge_method={merge_method} has the rank that comes out"
        )
    for file in files:
        if file.has_dora:
            raise ValueError(
                f"adapter={file.path}: a DoRA, whose change depends on the weights below it; merge it into its base, and "
                "extract a LoRA from the two"
            )
    whole = sum(max(layer.rank for layer in file.layers.values()) for file in files)
    if rank is not None and not 1 <= rank <= whole:
        raise ValueError(f"rank={rank}: choose 1 to {whole}, which holds all of it")
    first, shapes = files[0], {}
    for file in files:
        for (part, name), one in file.layers.items():
            if one.shape != shapes.setdefault((part, name), one.shape):
                raise ValueError(
                    f"adapter={file.path}: of another architecture than {first.path} "
                    f"({part}.{name} is {list(one.shape)} here and {list(shapes[part, name])} there)"
                )


def sum_factors(parts: list[tuple[float, LowRank]], name: str) -> LowRank:
    """Factors times the root of their weights, added up; the sign goes to one of them."""
    if len(sizes := {len(down) for _, (_, down) in parts}) > 1:
        raise ValueError(
            f"merge_method=linear: the files have ranks {sorted(sizes)} in {name}; choose merge_method=concat or merge_method=svd"
        )
    signed = [(abs(w) ** 0.5, 1 if w >= 0 else -1, up, down) for w, (up, down) in parts]
    return sum(root * sign * up for root, sign, up, _ in signed), sum(root * down for root, _, _, down in signed)


def format_optional(value: float | None) -> str:
    return "null" if value is None else str(value)


def resize_lora_file(file: LoraFile, rank: int | None, energy: float | None) -> MixResult:
    """Every layer by its nearest of at most `rank`, or of the least rank that keeps that share of its energy.

    A DoRA's magnitudes stay as they are. Layers of a lower rank keep theirs.
    """
    most = max(layer.rank for layer in file.layers.values())
    if (rank is None) == (energy is None):
        raise ValueError(
            f"rank={format_optional(rank)} energy={format_optional(energy)}: give one of them, such as rank={max(1, most // 2)} or energy=0.95"
        )
    if rank is not None and not 1 <= rank <= most:
        raise ValueError(f"rank={rank}: {file.path.name} has rank {most}; choose 1 to {most}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: choose more than 0 up to 1, such as 0.95")
    made = MixResult()
    for (part, name), one in file.layers.items():
        exact = one.to_low_rank()
        if not torch.count_nonzero(exact[0]) or not torch.count_nonzero(exact[1]):
            product = exact[0][:, :1], exact[1][:1]
        else:
            product = reduce_rank(exact, rank, energy)
        made.add_layer(part, name, one.shape, exact, product, one.magnitude)
    return made

"""LoRA files added up or made smaller, in the changes that they make to the weights.

A file changes a weight by dW = alpha / rank * up @ down, so the mix of files is the weighted sum of their dW. Adding up their
factors instead (up and up, down and down) is not that: (a + b)(c + d) has two products too many.
"""

from dataclasses import dataclass, field

import torch

from sdft.lora.file import LoraFile, one_each
from sdft.lora.low_rank import Layer, Product, distance, energy, layer, reduced, total

HOWS = ("concat", "svd", "linear")
SUMS = ("one", "any", "normalize")
Parts = dict[str, dict[str, Layer]]


@dataclass
class Made:
    """Layers, and how far they are from what was asked: squared norms of the exact change and of what is missing of it."""

    parts: Parts = field(default_factory=dict)
    whole: float = 0.0
    missing: float = 0.0

    def add(self, part: str, name: str, shape: tuple, exact: Product, product: Product, magnitude=None) -> None:
        self.whole += energy(exact)
        self.missing += 0.0 if product is exact else distance(exact, product)
        self.put(part, name, shape, product, magnitude)

    def put(self, part: str, name: str, shape: tuple, product: Product, magnitude=None) -> None:
        made = layer(product, shape)
        made.magnitude = magnitude
        self.parts.setdefault(part, {})[name] = made

    @property
    def kept(self) -> float:
        """The share of the change's energy, its squared Frobenius norm over all layers, that is there."""
        return 1 - self.missing / self.whole if self.whole else 1.0

    @property
    def ranks(self) -> list[int]:
        return sorted({layer.rank for layers in self.parts.values() for layer in layers.values()})


def balanced(weights: list[float] | None, count: int, sums: str) -> list[float]:
    """The weights as they are applied; `ValueError` when they are not as many as files, or do not sum to 1 where they should."""
    if sums not in SUMS:
        raise ValueError(f"weight_sum={sums}: choose one of {', '.join(SUMS)}")
    if not count:
        raise ValueError("adapters=[]: give at least one LoRA file, or the folder of a run or an adapter")
    weights = [1 / count] * count if weights is None else one_each(list(weights), count)
    if sums == "one" and abs(sum(weights) - 1) > 1e-6:
        raise ValueError(
            f"weights={weights}: they sum to {sum(weights):.6g}, not 1; give weight_sum=any to add the files up as strongly as that, "
            "or weight_sum=normalize to divide by the sum"
        )
    if sums == "normalize" and abs(sum(weights)) < 1e-9:
        raise ValueError(f"weights={weights}: they sum to 0, which nothing is divided by; give weight_sum=any")
    return [weight / sum(weights) for weight in weights] if sums == "normalize" else weights


def mix(files: list[LoraFile], weights: list[float], merge_method: str = "concat", rank: int | None = None) -> Made:
    """`concat`: the weighted sum itself, ranks add up; `svd`: the nearest to it of `rank`, by default the largest of the files';
    `linear`: factors added up as many tools do, which is something else, and `kept` says by how much.
    """
    check(files, merge_method, rank)
    made, most = Made(), max(layer.rank for file in files for layer in file.layers.values())
    for part, name in sorted({key for file in files for key in file.layers}, reverse=True):
        mine = [
            (w, file.layers[part, name]) for w, file in zip(weights, files, strict=True) if (part, name) in file.layers
        ]
        exact = total([(weight, layer.product()) for weight, layer in mine])
        if merge_method == "linear":
            product = added([(w, layer.product()) for w, layer in mine], name)
        elif merge_method == "svd":
            product = reduced(exact, rank or most)
        else:  # more than the weight has is never needed
            product = exact if exact[0].shape[1] <= min(len(exact[0]), exact[1].shape[1]) else reduced(exact)
        made.add(part, name, mine[0][1].shape, exact, product)
    return made


def check(files: list[LoraFile], merge_method: str, rank: int | None) -> None:
    if merge_method not in HOWS:
        raise ValueError(f"merge_method={merge_method}: choose one of {', '.join(HOWS)}")
    if rank is not None and merge_method != "svd":
        raise ValueError(f"rank={rank}: goes with merge_method=svd; merge_method={merge_method} has the rank that comes out")
    for file in files:
        if file.dora:
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


def added(parts: list[tuple[float, Product]], name: str) -> Product:
    """Factors times the root of their weights, added up; the sign goes to one of them."""
    if len(sizes := {len(down) for _, (_, down) in parts}) > 1:
        raise ValueError(f"merge_method=linear: the files have ranks {sorted(sizes)} in {name}; choose merge_method=concat or merge_method=svd")
    signed = [(abs(w) ** 0.5, 1 if w >= 0 else -1, up, down) for w, (up, down) in parts]
    return sum(root * sign * up for root, sign, up, _ in signed), sum(root * down for root, _, _, down in signed)


def shown(value: float | None) -> str:
    return "null" if value is None else str(value)


def resize(file: LoraFile, rank: int | None, energy: float | None) -> Made:
    """Every layer by its nearest of at most `rank`, or of the least rank that keeps that share of its energy.

    A DoRA's magnitudes stay as they are. Layers of a lower rank keep theirs.
    """
    most = max(layer.rank for layer in file.layers.values())
    if (rank is None) == (energy is None):
        raise ValueError(
            f"rank={shown(rank)} energy={shown(energy)}: give one of them, such as rank={max(1, most // 2)} or energy=0.95"
        )
    if rank is not None and not 1 <= rank <= most:
        raise ValueError(f"rank={rank}: {file.path.name} has rank {most}; choose 1 to {most}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: choose more than 0 up to 1, such as 0.95")
    made = Made()
    for (part, name), one in file.layers.items():
        exact = one.product()
        if not torch.count_nonzero(exact[0]) or not torch.count_nonzero(exact[1]):
            product = exact[0][:, :1], exact[1][:1]
        else:
            product = reduced(exact, rank, energy)
        made.add(part, name, one.shape, exact, product, one.magnitude)
    return made

"""Mix LoRA files: the weighted sum of their weight changes.

A file changes a weight by dW = alpha / rank * up @ down, and a mix is the weighted sum of dW. Adding the factors instead (up
to up, down to down) is different: (a + b)(c + d) has two additional products.
"""

from sdft.lora.file import LoraFile, check_weight_count
from sdft.lora.low_rank import (
    LowRank,
    reduce_rank,
    sum_low_rank,
)
from sdft.lora.low_rank_result import LowRankResult

MERGE_METHODS = ("concat", "svd", "linear")
WEIGHT_SUMS = ("one", "any", "normalize")


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
) -> LowRankResult:
    """`concat`: the exact weighted sum, ranks add up; `svd`: its best approximation of `rank` (default: the highest rank);
    `linear`: the weighted sum of the factors, as in many tools, which differs (see `energy_fraction`).
    """
    check_mix(files, merge_method, rank)
    result, max_rank = LowRankResult(), max(layer.rank for file in files for layer in file.layers.values())
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
        if file.architecture != files[0].architecture:
            raise ValueError(
                f"adapter={file.path}: architecture differs from {files[0].path}: "
                f"one is for {file.architecture.title}, the other for {files[0].architecture.title}"
            )
        if file.has_dora:
            raise ValueError(
                f"adapter={file.path}: DoRA cannot be mixed, as its change depends on the base weights; convert it to the "
                "nearest LoRA first: sdft convert adapter=FILE to=diffusers base=MODEL rank=32"
            )
    max_rank = sum(max(layer.rank for layer in file.layers.values()) for file in files)
    if rank is not None and not 1 <= rank <= max_rank:
        raise ValueError(f"rank={rank}: choose 1 to {max_rank}, the rank of the exact sum")


def sum_factors(terms: list[tuple[float, LowRank]], name: str) -> LowRank:
    """Sum the factors, each times the root of its weight; the sign goes to up."""
    if len(ranks := {len(down) for _, (_, down) in terms}) > 1:
        raise ValueError(
            f"merge_method=linear: the files have ranks {sorted(ranks)} in {name}; choose merge_method=concat or merge_method=svd"
        )
    signed = [(abs(w) ** 0.5, 1 if w >= 0 else -1, up, down) for w, (up, down) in terms]
    return sum(root * sign * up for root, sign, up, _ in signed), sum(root * down for root, _, _, down in signed)

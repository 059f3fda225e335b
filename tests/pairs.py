"""Pairwise testing: few cases in which every two values of different options meet."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product


def cover_pairs(options: Mapping[str, Sequence], is_valid: Callable[[dict], bool] = lambda case: True) -> list[dict]:
    """Valid combinations, one value per option, that together have all pairs of values that a valid combination has."""
    cases = [dict(zip(options, values, strict=True)) for values in product(*options.values())]
    masks, bits = [], {}
    cases = [case for case in cases if is_valid(case)]
    for case in cases:
        pairs = combinations(case.items(), 2)
        masks.append(sum(1 << bits.setdefault(pair, len(bits)) for pair in pairs))
    missing, chosen = (1 << len(bits)) - 1, []
    while missing:
        best = max(range(len(cases)), key=lambda index: (masks[index] & missing).bit_count())
        chosen.append(cases[best])
        missing &= ~masks[best]
    return chosen


def describe_case(case: Mapping) -> str:
    """The id of a test: the values, without switches that are off."""
    return " ".join(name if value is True else str(value) for name, value in case.items() if value is not False)

"""Pairs of values that the cases of pairwise tests cover."""

from itertools import combinations, product

from pairs import cover_pairs


def test_every_pair_that_is_possible_is_covered_by_few_cases():
    options = {"a": range(4), "b": range(3), "c": [False, True], "d": [False, True], "e": [False, True]}

    def is_valid(case: dict) -> bool:
        return not (case["a"] == 3 and case["e"])

    cases = cover_pairs(options, is_valid)
    possible = [dict(zip(options, values, strict=True)) for values in product(*options.values())]
    pairs = {pair for case in filter(is_valid, possible) for pair in combinations(case.items(), 2)}
    assert pairs == {pair for case in cases for pair in combinations(case.items(), 2)}
    assert len(cases) <= 16 and all(map(is_valid, cases))

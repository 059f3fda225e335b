"""What the words of a sweep stand for: every combination of their values, or ranges to search in."""

import itertools
import math

MAX_JOBS = 10_000  # jobs of a sweep


def expand_grid(values: dict[str, list], words: list[str]) -> list[list[str]]:
    """The words of every job: all combinations, the last word changing fastest. `words` replace and add to `values`.

    A word with several values, as Hydra writes them (`rank=4,8`, `seed=range(3)`), is tried with each.
    """
    given = [expand_override(word) for word in words]
    named = {word.split("=", 1)[0].lstrip("+") for word in words if "=" in word}
    own = [
        [f"{key}={format_override_value(value)}" for value in tries]
        for key, tries in values.items()
        if key not in named
    ]
    if (count := math.prod(len(tries) for tries in [*own, *given])) > MAX_JOBS:
        raise ValueError(
            f"{' '.join(words)}: {count} jobs; give fewer values, at most {MAX_JOBS} jobs, or search with trials=N"
        )
    return [list(chosen) for chosen in itertools.product(*own, *given)]


def expand_override(word: str) -> list[str]:
    """All single words that one with several values stands for."""
    override = parse_override(word)
    if override is None or not override.is_sweep_override():
        return [word]
    key = override.get_key_element()
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))
    except ValueError as error:  # Python's, of a range without an end
        raise ValueError(f"{word}: {error}") from None
    if not 0 < len(values) <= MAX_JOBS:
        raise ValueError(
            f"{word}: stands for {'no' if not values else f'more than {MAX_JOBS}'} values; give from 1 to {MAX_JOBS}"
        )
    return [f"{key}={value}" for value in values]


def parameter_values(parameters: dict) -> dict[str, list]:
    """The values that each word is to take."""
    if ranges := [key for key, told in parameters.items() if not {"value", "values"} & set(told)]:
        raise ValueError(f"{ranges[0]}: method: grid tries values; give values, or method: bayes")
    return {key: told["values"] if "values" in told else [told["value"]] for key, told in parameters.items()}


def build_search_space(parameters: dict, words: list[str]) -> tuple[dict, list[str]]:
    """What Optuna may pick for each word, and the words that are the same in all jobs."""
    from sdft.sweeps.optuna_search import parse_override_distribution, parse_parameter_distribution

    named = {word.split("=", 1)[0].lstrip("+") for word in words if "=" in word}
    told = {key: (parse_parameter_distribution(one), one) for key, one in parameters.items() if key not in named}
    space = {key: values for key, (values, _) in told.items() if values}
    fixed = [f"{key}={format_override_value(one['value'])}" for key, (values, one) in told.items() if values is None]
    for word in words:
        override = parse_override(word)
        if override is not None and override.is_sweep_override():
            try:
                space[override.get_key_element()] = parse_override_distribution(override)
            except ValueError as error:  # Optuna's
                raise ValueError(f"{word}: {error}") from None
        else:
            fixed.append(word)
    return space, fixed


def search_space_corners(space: dict) -> list[list]:
    """The first and the last values: what is refused is refused for one of them, before any job runs."""
    ends = [getattr(values, "choices", None) or (values.low, values.high) for values in space.values()]
    return [[end[0] for end in ends], [end[-1] for end in ends]]


def parse_override(word: str):
    """A word as Hydra reads it; None for a flag."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return None if word.startswith("-") else OverridesParser.create().parse_override(word)


def is_range_override(word: str) -> bool:
    """Whether it has a range of values, of which not each can be tried."""
    override = parse_override(word)
    return override is not None and override.is_sweep_override() and not override.is_discrete_sweep()


def format_override_value(value) -> str:
    """As a command line says it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def varying_overrides(combinations: list[list[str]], number: int) -> list[str]:
    """The words of one job that differ between jobs."""
    return [word for word in combinations[number] if any(word not in other for other in combinations)] or ["all"]

"""Expand the overrides of a sweep: every combination of their values, or a search space of ranges."""

import itertools
import math

from sdft.options.quoting import format_override, parse_override

MAX_JOBS = 10_000  # per sweep


def expand_grid(values: dict[str, list], overrides: list[str]) -> list[list[str]]:
    """The overrides of every job: all combinations, the last option changing fastest.

    `overrides` replace and extend `values`; Hydra's sweep syntax (`rank=4,8`, `seed=range(3)`) is expanded.
    """
    expanded = [expand_override(override) for override in overrides]
    replaced = list_option_keys(overrides)
    from_values = [
        [format_parameter(key, value) for value in choices] for key, choices in values.items() if key not in replaced
    ]
    if (count := math.prod(len(choices) for choices in [*from_values, *expanded])) > MAX_JOBS:
        raise ValueError(
            f"{' '.join(overrides)}: {count} jobs; give fewer values (at most {MAX_JOBS} jobs), or search with trials=N"
        )
    return [list(combination) for combination in itertools.product(*from_values, *expanded)]


def list_option_keys(overrides: list[str]) -> set[str]:
    return {override.split("=", 1)[0].lstrip("+") for override in overrides if "=" in override}


def expand_override(text: str) -> list[str]:
    """All single-value overrides of an override with several values."""
    override = parse_override(text)
    if override is None or not override.is_sweep_override():
        return [text]
    key = override.get_key_element()
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MAX_JOBS + 1))
    except ValueError as error:  # Python's, for a range with step 0
        raise ValueError(f"{text}: {error}") from None
    if not 0 < len(values) <= MAX_JOBS:
        count = "no" if not values else f"more than {MAX_JOBS}"
        raise ValueError(f"{text}: expands to {count} values; give from 1 to {MAX_JOBS}")
    return [f"{key}={value}" for value in values]


def parameter_values(parameters: dict) -> dict[str, list]:
    """The values of each parameter of a `method: grid` sweep file."""
    if ranges := [key for key, spec in parameters.items() if not {"value", "values"} & set(spec)]:
        raise ValueError(f"{ranges[0]}: method: grid takes no ranges; give values, or method: bayes")
    return {key: spec["values"] if "values" in spec else [spec["value"]] for key, spec in parameters.items()}


def build_search_space(parameters: dict, overrides: list[str]) -> tuple[dict, list[str]]:
    """Optuna distributions by option, and the overrides that all jobs share."""
    from sdft.sweeps.optuna_search import parse_override_distribution, parse_parameter_distribution

    replaced = list_option_keys(overrides)
    parsed = {
        key: (parse_parameter_distribution(spec), spec) for key, spec in parameters.items() if key not in replaced
    }
    space = {key: distribution for key, (distribution, _) in parsed.items() if distribution}
    fixed = [
        format_parameter(key, spec["value"]) for key, (distribution, spec) in parsed.items() if distribution is None
    ]
    for text in overrides:
        override = parse_override(text)
        if override is not None and override.is_sweep_override():
            try:
                space[override.get_key_element()] = parse_override_distribution(override)
            except ValueError as error:  # Optuna's
                raise ValueError(f"{text}: {error}") from None
        else:
            fixed.append(text)
    return space, fixed


def search_space_corners(space: dict) -> list[list]:
    """The lowest and the highest value of every option: composing both finds invalid values before any job runs."""
    ends = [getattr(values, "choices", None) or (values.low, values.high) for values in space.values()]
    return [[end[0] for end in ends], [end[-1] for end in ends]]


def format_parameter(key: str, value) -> str:
    """A value of a sweep file as an override; text with `${` stays an interpolation."""
    return f"{key}={value}" if isinstance(value, str) and "${" in value else format_override(key, value)


def is_range_override(text: str) -> bool:
    """Whether the value is a continuous range, which cannot be expanded."""
    override = parse_override(text)
    return override is not None and override.is_sweep_override() and not override.is_discrete_sweep()


def varying_overrides(combinations: list[list[str]], number: int) -> list[str]:
    """The overrides of one job that differ between jobs."""
    return [text for text in combinations[number] if any(text not in other for other in combinations)] or ["all"]

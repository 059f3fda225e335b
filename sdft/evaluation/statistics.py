"""A score is a mean with a confidence interval: a bootstrap over prompts, or over seeds when there are few prompts."""

import math

import torch
from torch import Tensor

from sdft.evaluation.metrics.base import ImageMetric, Metric
from sdft.evaluation.protocol import PROMPTS_GROUP

FINE_TUNED_LABEL = "fine-tuned"  # label of a run's result
BOOTSTRAP_DRAWS, CONFIDENCE_LEVEL, MIN_PROMPTS = 4000, 0.95, 5


def bootstrap_interval(values: Tensor, images: int) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean with a small-sample correction; None with too few values.

    `values` is `[prompts * images]`, NaN where undefined. From `MIN_PROMPTS` prompts on, prompts are resampled with all their
    images: the interval covers other prompts of the same kind. With fewer, the images of each prompt are resampled: it covers
    other seeds of these prompts. Percentiles are widened by Student's t and n / (n - 1) (Hesterberg, 2015, section 5.3). The
    generator is seeded, so results are reproducible.
    """
    table = values.double().reshape(-1, images)
    generator = torch.Generator().manual_seed(0)
    if len(table) >= MIN_PROMPTS:
        table = table[table.isfinite().any(1)]
        draws = torch.randint(max(1, len(table)), (BOOTSTRAP_DRAWS, len(table)), generator=generator)
        sums, counts = table.nansum(1)[draws], table.isfinite().sum(1)[draws]
        means, size, freedom = sums.sum(1) / counts.sum(1), len(table), len(table) - 1
    else:
        draws = torch.randint(images, (BOOTSTRAP_DRAWS, *table.shape), generator=generator)
        means = table.expand(BOOTSTRAP_DRAWS, *table.shape).gather(2, draws).flatten(1).nanmean(1)
        means, size, freedom = means[means.isfinite()], images, int(table.isfinite().sum()) - len(table)
    if size < 2 or freedom < 1:
        return None
    tail = compute_tail_probability(size, freedom)
    low, high = means.quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


def compute_tail_probability(size: int, freedom: int) -> float:
    """Corrected probability outside the interval, per side."""
    from scipy.stats import norm, t

    return float(norm.cdf(t.ppf((1 - CONFIDENCE_LEVEL) / 2, freedom) * math.sqrt(size / (size - 1))))


def summarize_metric(metric: Metric, images: int) -> dict:
    """A score in the format of `scores.json`: `value`; for an `ImageMetric` also interval, counts and single values."""
    score = {"value": to_json_number(float(metric.compute()))}
    if isinstance(metric, ImageMetric):
        values = metric.collect()
        low, high = bootstrap_interval(values, images) or (None, None)
        score |= {
            "low": to_json_number(low),
            "high": to_json_number(high),
            "count": int(values.isfinite().sum()),
            "of": len(values),
        }
        score["per_prompt"] = [to_json_number(float(row.nanmean())) for row in values.reshape(-1, images)]
        score["per_image"] = [to_json_number(value) for value in values.tolist()]
    return score


def compute_paired_difference(one: dict, other: dict, images: int) -> dict | None:
    """`other` - `one` over the same prompts and seeds, with its interval, which excludes the variance between prompts.

    None without per-image values or if either score is undefined.
    """
    if "per_image" not in one or one["value"] is None or other["value"] is None:
        return None
    pairs = zip(one["per_image"], other["per_image"], strict=True)
    differences = torch.tensor([math.nan if None in pair else pair[1] - pair[0] for pair in pairs])
    low, high = bootstrap_interval(differences, images) or (None, None)
    return {
        "value": to_json_number(float(differences.double().nanmean())),
        "low": to_json_number(low),
        "high": to_json_number(high),
        "count": int(differences.isfinite().sum()),
        "of": len(differences),
    }


def get_result_state(report: dict) -> dict:
    """The run's result at full adapter scale; the last state if there is none."""
    return next((state for state in report["states"] if state["label"] == FINE_TUNED_LABEL), report["states"][-1])


def format_score_name(group: str, name: str) -> str:
    """`group/name`, or `name` for the group `prompts`."""
    return name if group == PROMPTS_GROUP else f"{group}/{name}"


def flatten_scores(groups: dict[str, dict]) -> dict:
    """Map {group: {name: value}} to {formatted name: value}."""
    return {format_score_name(group, name): value for group, row in groups.items() for name, value in row.items()}


def to_json_number(value: float | None) -> float | None:
    """Round to six decimals; None for NaN and Inf, which JSON cannot represent."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def orient_score(score: float | None, higher_is_better: bool) -> float:
    """Sort key for scores: larger is better; None, NaN and Inf are worst."""
    if score is None or not math.isfinite(score):
        return -math.inf
    return score if higher_is_better else -score


def format_score_table(report: dict) -> list[str]:
    """One line per score, by group: every state, the interval if there is one besides the base, and real images."""
    states = report["states"]
    single = len(states) == 2
    heads = [*[state["label"] for state in states], *(["95 %"] if single else []), "real"]
    width = [max(10, len(head) + 2) for head in heads]
    if single:
        width[2] = 16
    lines = [f"{'':<24}" + "".join(f"{head:>{w}}" for head, w in zip(heads, width, strict=True))]
    for group, prompts in report["groups"].items():
        lines.append(f"{group}: {len(prompts)} × {report['images']}")
        for name, facts in report["metrics"][group].items():
            number_format = facts["number_format"]
            scores = [state["scores"][group][name] for state in states]
            cells = [format_score(score["value"], number_format) for score in scores]
            if single:
                low, high = scores[1].get("low"), scores[1].get("high")
                cells.append(
                    "" if low is None else f"{format_score(low, number_format)} – {format_score(high, number_format)}"
                )
            cells.append(format_score(report["reference"][group].get(name), number_format, ""))
            line = f"  {name:<22}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, width, strict=True))
            lines.append((line + format_score_count(scores[-1])).rstrip())
    lines += [f"  {name:<22}not measured: {reason}" for name, reason in report["missing"].items()]
    return lines


def format_score_count(score: dict) -> str:
    """How many images have a value, if not all do."""
    return f"   {score['count']} of {score['of']}" if score.get("count", 0) < score.get("of", 0) else ""


def format_score(value: float | None, number_format: str, absent: str = "–") -> str:
    return absent if value is None else number_format.format(value)

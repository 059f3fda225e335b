"""A score is a mean with its uncertainty: a bootstrap over prompts, or of a few prompts over their seeds (Hesterberg, 2015)."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from sdft.evaluation.metrics.base import ImageMetric
from sdft.evaluation.protocol import PROMPTS_GROUP

FINE_TUNED_LABEL = "fine-tuned"  # the label of a run's result
BOOTSTRAP_DRAWS, CONFIDENCE_LEVEL, MIN_PROMPTS = 4000, 0.95, 5


def bootstrap_interval(values: Tensor, images: int) -> tuple[float, float] | None:
    """A percentile bootstrap of the mean, widened as small samples need it; None where there is too little to draw from.

    `values` are `[prompts * images]`, NaN where there is none. Of `ENOUGH` prompts or more, prompts are drawn with replacement,
    each with all its images: where would the mean lie for other prompts of their kind? Of fewer, the images of each are drawn:
    where would it lie for other seeds of these? Percentiles move outwards by Student's t and n / (n - 1) (Hesterberg, 2015,
    section 5.3). The draws are always the same.
    """
    table = values.double().reshape(-1, images)
    chance = torch.Generator().manual_seed(0)
    if len(table) >= MIN_PROMPTS:
        table = table[table.isfinite().any(1)]
        draws = torch.randint(max(1, len(table)), (BOOTSTRAP_DRAWS, len(table)), generator=chance)
        sums, counts = table.nansum(1)[draws], table.isfinite().sum(1)[draws]
        means, size, freedom = sums.sum(1) / counts.sum(1), len(table), len(table) - 1
    else:
        draws = torch.randint(images, (BOOTSTRAP_DRAWS, *table.shape), generator=chance)
        means = table.expand(BOOTSTRAP_DRAWS, *table.shape).gather(2, draws).flatten(1).nanmean(1)
        means, size, freedom = means[means.isfinite()], images, int(table.isfinite().sum()) - len(table)
    if size < 2 or freedom < 1:
        return None
    tail = compute_tail_probability(size, freedom)
    low, high = means.quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


def compute_tail_probability(size: int, freedom: int) -> float:
    """The share that an interval leaves out on each side."""
    from scipy.stats import norm, t

    return float(norm.cdf(t.ppf((1 - CONFIDENCE_LEVEL) / 2, freedom) * math.sqrt(size / (size - 1))))


def summarize_metric(metric: Metric, images: int) -> dict:
    """A score as files hold it: `value`, and of one with a value a picture its interval, how many count, and all of them."""
    score = {"value": to_json_number(float(metric.compute()))}
    if isinstance(metric, ImageMetric):
        each = metric.per_image_values()
        low, high = bootstrap_interval(each, images) or (None, None)
        score |= {
            "low": to_json_number(low),
            "high": to_json_number(high),
            "count": int(each.isfinite().sum()),
            "of": len(each),
        }
        score["per_prompt"] = [to_json_number(float(row.nanmean())) for row in each.reshape(-1, images)]
        score["each"] = [to_json_number(value) for value in each.tolist()]
    return score


def compute_paired_difference(one: dict, other: dict, images: int) -> dict | None:
    """`other` - `one` over the same prompts and seeds, and its interval: what changed, without what only the prompts vary by."""
    if "each" not in one or one["value"] is None or other["value"] is None:
        return None
    both = zip(one["each"], other["each"], strict=True)
    pairs = torch.tensor([math.nan if None in pair else pair[1] - pair[0] for pair in both])
    low, high = bootstrap_interval(pairs, images) or (None, None)
    count = {"count": int(pairs.isfinite().sum()), "of": len(pairs)}
    return {
        "value": to_json_number(float(pairs.double().nanmean())),
        "low": to_json_number(low),
        "high": to_json_number(high),
        **count,
    }


def get_result_state(report: dict) -> dict:
    """The state that a run ended in, at full strength, whatever was evaluated beside it."""
    return next((state for state in report["states"] if state["label"] == FINE_TUNED_LABEL), report["states"][-1])


def format_score_name(group: str, name: str) -> str:
    """What a score is called where groups are not shown: that of the prompts by its name alone."""
    return name if group == PROMPTS_GROUP else f"{group}/{name}"


def flatten_scores(groups: dict[str, dict]) -> dict:
    """What stands by group and name, by the name where groups are not shown."""
    return {format_score_name(group, name): value for group, row in groups.items() for name, value in row.items()}


def to_json_number(value: float | None) -> float | None:
    """Six digits after the point; None for what is no number, which JSON cannot say."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def orient_score(score: float | None, higher_is_better: bool) -> float:
    """For choosing: larger is better, and what could not be computed is worse than anything."""
    if score is None or not math.isfinite(score):
        return -math.inf
    return score if higher_is_better else -score


def format_score_table(report: dict) -> str:
    """A line a score, by group: the base, every state, the interval of a single one, what real pictures score."""
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
    lines += [f"  {name:<22}not measured: {why}" for name, why in report["missing"].items()]
    return "\n".join(lines)


def format_score_count(score: dict) -> str:
    """How many pictures have a value, when not all have."""
    return f"   of {score['count']} in {score['of']}" if score.get("count", 0) < score.get("of", 0) else ""


def format_score(value: float | None, number_format: str, absent: str = "–") -> str:
    return absent if value is None else number_format.format(value)

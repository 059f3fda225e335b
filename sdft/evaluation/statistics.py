"""A score is a mean with its uncertainty: a bootstrap over prompts, or of a few prompts over their seeds (Hesterberg, 2015)."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from sdft.evaluation.metrics.base import PictureMetric
from sdft.evaluation.protocol import PROMPTS

TUNED = "fine-tuned"  # the label of a run's result
DRAWS, LEVEL, ENOUGH = 4000, 0.95, 5


def interval(values: Tensor, images: int) -> tuple[float, float] | None:
    """A percentile bootstrap of the mean, widened as small samples need it; None where there is too little to draw from.

    `values` are `[prompts * images]`, NaN where there is none. Of `ENOUGH` prompts or more, prompts are drawn with replacement,
    each with all its images: where would the mean lie for other prompts of their kind? Of fewer, the images of each are drawn:
    where would it lie for other seeds of these? Percentiles move outwards by Student's t and n / (n - 1) (Hesterberg, 2015,
    section 5.3). The draws are always the same.
    """
    table = values.double().reshape(-1, images)
    chance = torch.Generator().manual_seed(0)
    if len(table) >= ENOUGH:
        table = table[table.isfinite().any(1)]
        draws = torch.randint(max(1, len(table)), (DRAWS, len(table)), generator=chance)
        sums, counts = table.nansum(1)[draws], table.isfinite().sum(1)[draws]
        means, size, freedom = sums.sum(1) / counts.sum(1), len(table), len(table) - 1
    else:
        draws = torch.randint(images, (DRAWS, *table.shape), generator=chance)
        means = table.expand(DRAWS, *table.shape).gather(2, draws).flatten(1).nanmean(1)
        means, size, freedom = means[means.isfinite()], images, int(table.isfinite().sum()) - len(table)
    if size < 2 or freedom < 1:
        return None
    tail = widened(size, freedom)
    low, high = means.quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


def widened(size: int, freedom: int) -> float:
    """The share that an interval leaves out on each side."""
    from scipy.stats import norm, t

    return float(norm.cdf(t.ppf((1 - LEVEL) / 2, freedom) * math.sqrt(size / (size - 1))))


def told(metric: Metric, images: int) -> dict:
    """A score as files hold it: `value`, and of one with a value a picture its interval, how many count, and all of them."""
    score = {"value": number(float(metric.compute()))}
    if isinstance(metric, PictureMetric):
        each = metric.each()
        low, high = interval(each, images) or (None, None)
        score |= {"low": number(low), "high": number(high), "count": int(each.isfinite().sum()), "of": len(each)}
        score["per_prompt"] = [number(float(row.nanmean())) for row in each.reshape(-1, images)]
        score["each"] = [number(value) for value in each.tolist()]
    return score


def difference(one: dict, other: dict, images: int) -> dict | None:
    """`other` - `one` over the same prompts and seeds, and its interval: what changed, without what only the prompts vary by."""
    if "each" not in one or one["value"] is None or other["value"] is None:
        return None
    both = zip(one["each"], other["each"], strict=True)
    pairs = torch.tensor([math.nan if None in pair else pair[1] - pair[0] for pair in both])
    low, high = interval(pairs, images) or (None, None)
    count = {"count": int(pairs.isfinite().sum()), "of": len(pairs)}
    return {"value": number(float(pairs.double().nanmean())), "low": number(low), "high": number(high), **count}


def result_of(report: dict) -> dict:
    """The state that a run ended in, at full strength, whatever was evaluated beside it."""
    return next((state for state in report["states"] if state["label"] == TUNED), report["states"][-1])


def key(group: str, name: str) -> str:
    """What a score is called where groups are not shown: that of the prompts by its name alone."""
    return name if group == PROMPTS else f"{group}/{name}"


def flat(groups: dict[str, dict]) -> dict:
    """What stands by group and name, by the name where groups are not shown."""
    return {key(group, name): value for group, row in groups.items() for name, value in row.items()}


def number(value: float | None) -> float | None:
    """Six digits after the point; None for what is no number, which JSON cannot say."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def worth(score: float | None, higher_is_better: bool) -> float:
    """For choosing: larger is better, and what could not be computed is worse than anything."""
    if score is None or not math.isfinite(score):
        return -math.inf
    return score if higher_is_better else -score


def table(report: dict) -> str:
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
            form = facts["form"]
            scores = [state["scores"][group][name] for state in states]
            cells = [shown(score["value"], form) for score in scores]
            if single:
                low, high = scores[1].get("low"), scores[1].get("high")
                cells.append("" if low is None else f"{shown(low, form)} – {shown(high, form)}")
            cells.append(shown(report["reference"][group].get(name), form, ""))
            line = f"  {name:<22}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, width, strict=True))
            lines.append((line + few(scores[-1])).rstrip())
    lines += [f"  {name:<22}not measured: {why}" for name, why in report["missing"].items()]
    return "\n".join(lines)


def few(score: dict) -> str:
    """How many pictures have a value, when not all have."""
    return f"   of {score['count']} in {score['of']}" if score.get("count", 0) < score.get("of", 0) else ""


def shown(value: float | None, form: str, absent: str = "–") -> str:
    return absent if value is None else form.format(value)

"""Curves of `metrics.csv`, downsampled to a few hundred points that preserve every peak."""

import math
import re
from itertools import pairwise
from pathlib import Path

from sdft.evaluation.plots.loss_curve import smooth_curve
from sdft.runs.links import resolve_safe_path
from sdft.runs.metrics_file import METRICS_FILE, Point, read_metric_columns

MAX_CURVE_POINTS = 400
QUARTER_NAMES = ("least noise", "quarter 2", "quarter 3", "most noise")


def downsample_points(points: list[Point], limit: int = MAX_CURVE_POINTS) -> list[Point]:
    """At most `limit` + 2 points: the minimum and maximum of each segment, the first and the last."""
    if len(points) <= limit:
        return points
    size = len(points) / (limit // 2)
    edges = [round(n * size) for n in range(limit // 2 + 1)]
    values, selected = [y for _, y in points], [points[0]]
    for start, end in pairwise(edges):
        segment = values[start:end]
        ends = {segment.index(min(segment)), segment.index(max(segment))}
        selected += [points[start + n] for n in sorted(ends)]
    return [*selected, points[-1]]


def build_curve(name: str, points: list[Point], **options) -> dict:
    """Curve of a panel; NaN/Inf values are counted, not drawn."""
    finite = [point for point in points if math.isfinite(point[1])]
    bad = len(points) - len(finite)
    return {
        "name": name,
        "points": [[x, round_to_six_digits(y)] for x, y in downsample_points(finite)],
        "bad": bad,
        **options,
    }


def round_to_six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def smooth_points(points: list[Point]) -> list[Point]:
    """Smooth as in `loss.png`."""
    finite = [point for point in points if math.isfinite(point[1])]
    return list(zip([x for x, _ in finite], smooth_curve([y for _, y in finite]), strict=True))


def build_panels(folder: Path) -> list[dict]:
    """Panels of a run's page: `main` curves are also compared between runs; `more` panels are collapsed."""
    columns = read_metric_columns(folder)
    panels = []
    if loss := columns.pop("validation/loss", None):
        panels.append({"title": "Loss at fixed noise", "lines": [build_curve("all timesteps", loss, main=True)]})
    quarters = [columns.pop(f"validation/loss_quarter_{n}", []) for n in (1, 2, 3, 4)]
    if any(quarters):
        lines = [
            build_curve(name, normalize_to_first(points))
            for name, points in zip(QUARTER_NAMES, quarters, strict=True)
            if points
        ]
        panels.append({"title": "Loss at fixed noise by timestep, first = 1", "lines": lines})
    if loss := columns.pop("train/loss", None):
        lines = [build_curve("each step", loss, faint=True), build_curve("smoothed", smooth_points(loss), main=True)]
        panels.append({"title": "Training loss", "lines": lines})
    rates = {name: columns.pop(name) for name in list(columns) if name.startswith("train/lr")}
    if rates:
        same = len({tuple(points) for points in rates.values()}) == 1
        curves = {"all" if same else name.removeprefix("train/lr_"): points for name, points in rates.items()}
        lines = [build_curve(name, points, main=not n) for n, (name, points) in enumerate(curves.items())]
        panels.append({"title": "Learning rate", "lines": lines})
    if norm := columns.pop("train/grad_norm", None):
        panels.append({"title": "Gradient norm", "lines": [build_curve("before clipping", norm, main=True)]})
    remaining = sorted(columns, key=lambda name: not name.startswith("scores/"))
    for name in remaining:
        title, score = name.removeprefix("scores/"), name.startswith("scores/")
        panels.append(
            {"title": title, "lines": [build_curve(title, columns[name], main=True)], "score": score, "more": not score}
        )
    return panels


def normalize_to_first(points: list[Point]) -> list[Point]:
    """Divide by the first finite, nonzero value."""
    first = next((y for _, y in points if math.isfinite(y) and y), 1.0)
    return [(x, y / first) for x, y in points]


def read_last_step(folder: Path) -> int | None:
    """Last step of a running run, read from the end of the file."""
    try:
        file = resolve_safe_path(folder, METRICS_FILE)
        with open(file, "rb") as stream:
            if not stream.readline().startswith(b"step,"):
                return None
            start = stream.tell()
            stream.seek(max(start - 1, file.stat().st_size - 4096))
            stream.readline()  # skip a partial line
            lines = stream.read().decode("utf-8", "replace").split("\n")[:-1]
    except OSError:
        return None
    steps = [int(cell) for cell in (line.partition(",")[0] for line in lines) if re.fullmatch(r"[0-9]{1,15}", cell)]
    return max(steps, default=None)

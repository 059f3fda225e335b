"""`metrics.csv` as curves that a page can draw: of a hundred thousand rows a few hundred points, with every peak."""

import csv
import math
import re
from itertools import pairwise
from pathlib import Path

from sdft.apps.gallery.safe_paths import resolve_safe_path
from sdft.evaluation.plots.loss_curve import smooth_curve

METRICS_CSV = "metrics.csv"
MAX_METRICS_BYTES = 2**29  # bytes
MAX_CURVE_POINTS = 400  # points of a curve
STEP_COLUMN = "step"
QUARTER_NAMES = ("least noise", "quarter 2", "quarter 3", "most noise")

Point = tuple[float, float]


def read_metric_columns(folder: Path) -> dict[str, list[Point]]:
    """(step, value) of each column where it has one, NaN for what is no number; a row that is cut off is left out."""
    found: dict[str, list[Point]] = {}
    try:
        file = resolve_safe_path(folder, METRICS_CSV)
        if file.stat().st_size > MAX_METRICS_BYTES:
            return {}
        with open(file, newline="", encoding="utf-8", errors="replace") as opened:
            rows = csv.reader(line for line in opened if line.endswith("\n"))
            names = [name[:200] for name in next(rows, [])]
            place = names.index(STEP_COLUMN) if STEP_COLUMN in names else None
            taken = [(n, found.setdefault(name, [])) for n, name in enumerate(names) if n != place]
            for row in rows if place is not None else ():
                if len(row) != len(names) or (step := parse_float(row[place])) is None or not math.isfinite(step):
                    continue
                for n, points in taken:
                    if row[n] and (value := parse_float(row[n])) is not None:
                        points.append((step, value))
    except (OSError, csv.Error):
        pass  # what was read until then is shown
    return {name: points for name, points in found.items() if points}


def parse_float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def downsample_points(points: list[Point], most: int = MAX_CURVE_POINTS) -> list[Point]:
    """At most `most` + 2 of them, the lowest and the highest of each stretch, the first and the last."""
    if len(points) <= most:
        return points
    size = len(points) / (most // 2)
    edges = [round(n * size) for n in range(most // 2 + 1)]
    values, kept = [y for _, y in points], [points[0]]
    for start, end in pairwise(edges):
        stretch = values[start:end]
        ends = {stretch.index(min(stretch)), stretch.index(max(stretch))}
        kept += [points[start + n] for n in sorted(ends)]
    return [*kept, points[-1]]


def build_curve(name: str, points: list[Point], **how) -> dict:
    """A curve for a panel; what is no number is counted, not drawn."""
    finite = [point for point in points if math.isfinite(point[1])]
    bad = len(points) - len(finite)
    return {
        "name": name,
        "points": [[x, round_to_six_digits(y)] for x, y in downsample_points(finite)],
        "bad": bad,
        **how,
    }


def round_to_six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def smooth_points(points: list[Point]) -> list[Point]:
    """As `loss.png` smooths it."""
    finite = [point for point in points if math.isfinite(point[1])]
    return list(zip([x for x, _ in finite], smooth_curve([y for _, y in finite]), strict=True))


def build_panels(folder: Path) -> list[dict]:
    """What a run's page draws: `main` curves are those that are compared with another run's; `more` is folded away."""
    columns = read_metric_columns(folder)
    found = []
    if loss := columns.pop("validation/loss", None):
        found.append({"title": "Loss at fixed noise", "lines": [build_curve("all timesteps", loss, main=True)]})
    quarters = [columns.pop(f"validation/loss_quarter_{n}", []) for n in (1, 2, 3, 4)]
    if any(quarters):
        lines = [
            build_curve(name, normalize_to_first(points))
            for name, points in zip(QUARTER_NAMES, quarters, strict=True)
            if points
        ]
        found.append({"title": "Loss at fixed noise by timestep, first = 1", "lines": lines})
    if loss := columns.pop("train/loss", None):
        lines = [build_curve("each", loss, faint=True), build_curve("smoothed", smooth_points(loss), main=True)]
        found.append({"title": "Training loss", "lines": lines})
    rates = {name: columns.pop(name) for name in list(columns) if name.startswith("train/lr")}
    if rates:
        same = len({tuple(points) for points in rates.values()}) == 1
        named = {"all" if same else name.removeprefix("train/lr_"): points for name, points in rates.items()}
        lines = [build_curve(name, points, main=not n) for n, (name, points) in enumerate(named.items())]
        found.append({"title": "Learning rate", "lines": lines})
    if norm := columns.pop("train/grad_norm", None):
        found.append({"title": "Gradient norm", "lines": [build_curve("before clipping", norm, main=True)]})
    rest = sorted(columns, key=lambda name: not name.startswith("scores/"))
    for name in rest:
        title, score = name.removeprefix("scores/"), name.startswith("scores/")
        found.append(
            {"title": title, "lines": [build_curve(title, columns[name], main=True)], "score": score, "more": not score}
        )
    return found


def normalize_to_first(points: list[Point]) -> list[Point]:
    """To the first value that is a number, and none that is 0."""
    first = next((y for _, y in points if math.isfinite(y) and y), 1.0)
    return [(x, y / first) for x, y in points]


def read_last_step(folder: Path) -> int | None:
    """Of a run that goes on, from the last lines alone."""
    try:
        file = resolve_safe_path(folder, METRICS_CSV)
        with open(file, "rb") as opened:
            if not opened.readline().startswith(b"step,"):
                return None
            start = opened.tell()
            opened.seek(max(start - 1, file.stat().st_size - 4096))
            opened.readline()  # the rest of a line
            lines = opened.read().decode("utf-8", "replace").split("\n")[:-1]
    except OSError:
        return None
    steps = [int(cell) for cell in (line.partition(",")[0] for line in lines) if re.fullmatch(r"[0-9]{1,15}", cell)]
    return max(steps, default=None)

"""`metrics.csv` as curves that a page can draw: of a hundred thousand rows a few hundred points, with every peak."""

import csv
import math
import re
from itertools import pairwise
from pathlib import Path

from sdft.apps.gallery.safe_paths import own
from sdft.evaluation.plots.loss_curve import smoothed

FILE = "metrics.csv"
LARGEST = 2**29  # bytes
MOST = 400  # points of a curve
STEP = "step"
QUARTERS = ("least noise", "quarter 2", "quarter 3", "most noise")

Point = tuple[float, float]


def columns_of(folder: Path) -> dict[str, list[Point]]:
    """(step, value) of each column where it has one, NaN for what is no number; a row that is cut off is left out."""
    found: dict[str, list[Point]] = {}
    try:
        file = own(folder, FILE)
        if file.stat().st_size > LARGEST:
            return {}
        with open(file, newline="", encoding="utf-8", errors="replace") as opened:
            rows = csv.reader(line for line in opened if line.endswith("\n"))
            names = [name[:200] for name in next(rows, [])]
            place = names.index(STEP) if STEP in names else None
            taken = [(n, found.setdefault(name, [])) for n, name in enumerate(names) if n != place]
            for row in rows if place is not None else ():
                if len(row) != len(names) or (step := value_of(row[place])) is None or not math.isfinite(step):
                    continue
                for n, points in taken:
                    if row[n] and (value := value_of(row[n])) is not None:
                        points.append((step, value))
    except (OSError, csv.Error):
        pass  # what was read until then is shown
    return {name: points for name, points in found.items() if points}


def value_of(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def thinned(points: list[Point], most: int = MOST) -> list[Point]:
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


def line(name: str, points: list[Point], **how) -> dict:
    """A curve for a panel; what is no number is counted, not drawn."""
    finite = [point for point in points if math.isfinite(point[1])]
    bad = len(points) - len(finite)
    return {"name": name, "points": [[x, short(y)] for x, y in thinned(finite)], "bad": bad, **how}


def short(value: float) -> float:
    return float(f"{value:.6g}")


def averaged(points: list[Point]) -> list[Point]:
    """As `loss.png` smooths it."""
    finite = [point for point in points if math.isfinite(point[1])]
    return list(zip([x for x, _ in finite], smoothed([y for _, y in finite]), strict=True))


def panels(folder: Path) -> list[dict]:
    """What a run's page draws: `main` curves are those that are compared with another run's; `more` is folded away."""
    columns = columns_of(folder)
    found = []
    if loss := columns.pop("validation/loss", None):
        found.append({"title": "Loss at fixed noise", "lines": [line("all timesteps", loss, main=True)]})
    quarters = [columns.pop(f"validation/loss_quarter_{n}", []) for n in (1, 2, 3, 4)]
    if any(quarters):
        lines = [line(name, ratio(points)) for name, points in zip(QUARTERS, quarters, strict=True) if points]
        found.append({"title": "Loss at fixed noise by timestep, first = 1", "lines": lines})
    if loss := columns.pop("train/loss", None):
        lines = [line("each", loss, faint=True), line("smoothed", averaged(loss), main=True)]
        found.append({"title": "Training loss", "lines": lines})
    rates = {name: columns.pop(name) for name in list(columns) if name.startswith("train/lr")}
    if rates:
        same = len({tuple(points) for points in rates.values()}) == 1
        named = {"all" if same else name.removeprefix("train/lr_"): points for name, points in rates.items()}
        lines = [line(name, points, main=not n) for n, (name, points) in enumerate(named.items())]
        found.append({"title": "Learning rate", "lines": lines})
    if norm := columns.pop("train/grad_norm", None):
        found.append({"title": "Gradient norm", "lines": [line("before clipping", norm, main=True)]})
    rest = sorted(columns, key=lambda name: not name.startswith("scores/"))
    for name in rest:
        title, score = name.removeprefix("scores/"), name.startswith("scores/")
        found.append(
            {"title": title, "lines": [line(title, columns[name], main=True)], "score": score, "more": not score}
        )
    return found


def ratio(points: list[Point]) -> list[Point]:
    """To the first value that is a number, and none that is 0."""
    first = next((y for _, y in points if math.isfinite(y) and y), 1.0)
    return [(x, y / first) for x, y in points]


def last_step(folder: Path) -> int | None:
    """Of a run that goes on, from the last lines alone."""
    try:
        file = own(folder, FILE)
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

"""Readers of `metrics.csv`: rows as text, to continue it, and points by column, to plot them."""

import csv
import math
from pathlib import Path

from sdft.runs.links import resolve_safe_path

METRICS_FILE, STEP_COLUMN = "metrics.csv", "step"
MAX_METRICS_BYTES = 2**29

Point = tuple[float, float]


def read_metrics(path: Path) -> tuple[list[str], list[dict]]:
    """Columns and rows, without a truncated last line."""
    if not path.is_file():
        return [], []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    rows = list(reader)
    return list(reader.fieldnames or []), rows


def find_last_logged_step(path: Path) -> int:
    """The largest step in `metrics.csv`, 0 without rows; `ValueError` for a damaged file."""
    try:
        return max((int(row[STEP_COLUMN]) for row in read_metrics(path)[1]), default=0)
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError(f"{path}: a row has no step; the file is damaged or was edited") from None


def read_metric_columns(folder: Path) -> dict[str, list[Point]]:
    """(step, value) points of each column, values may be NaN/Inf; incomplete rows are skipped."""
    columns: dict[str, list[Point]] = {}
    try:
        file = resolve_safe_path(folder, METRICS_FILE)
        if file.stat().st_size > MAX_METRICS_BYTES:
            return {}
        with open(file, newline="", encoding="utf-8", errors="replace") as stream:
            rows = csv.reader(line for line in stream if line.endswith("\n"))
            names = [name[:200] for name in next(rows, [])]
            step_index = names.index(STEP_COLUMN) if STEP_COLUMN in names else None
            series = [(n, columns.setdefault(name, [])) for n, name in enumerate(names) if n != step_index]
            for row in rows if step_index is not None else ():
                if len(row) != len(names) or (step := parse_float(row[step_index])) is None or not math.isfinite(step):
                    continue
                for n, points in series:
                    if row[n] and (value := parse_float(row[n])) is not None:
                        points.append((step, value))
    except (OSError, csv.Error):
        pass  # rows read so far are used
    return {name: points for name, points in columns.items() if points}


def parse_float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None

"""Plot the loss curves of a run: training loss, and validation loss by timestep quarter."""

import csv
from pathlib import Path

TRAINING_COLUMN, VALIDATION_COLUMN = "train/loss", "validation/loss_quarter_{}"
EMA_DECAY = 0.9  # of the training curve's moving average


def read_metric_column(folder: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column of `metrics.csv`."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]
    return [step for step, _ in rows], [value for _, value in rows]


def smooth_curve(values: list[float]) -> list[float]:
    """Bias-corrected exponential moving average."""
    average, smoothed = 0.0, []
    for n, value in enumerate(values, 1):
        average = EMA_DECAY * average + (1 - EMA_DECAY) * value
        smoothed.append(average / (1 - EMA_DECAY**n))
    return smoothed


def plot_loss_curves(folder: Path, held_out: bool) -> Path:
    """Write `loss.png` from `metrics.csv`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6))
    # fixed margins, since automatic layout needs an extra rendering pass
    figure.subplots_adjust(left=0.065, right=0.985, top=0.9, bottom=0.14, wspace=0.15)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps, values = read_metric_column(folder, TRAINING_COLUMN)
    left.plot(steps, values, color="0.75", linewidth=1, marker="." if len(steps) < 30 else None)
    left.plot(steps, smooth_curve(values), color="tab:blue", linewidth=2)
    left.set(title="training loss (weighted)", xlabel="step")
    for quarter, colour in enumerate(("tab:blue", "tab:green", "tab:orange", "tab:red"), 1):
        steps, values = read_metric_column(folder, VALIDATION_COLUMN.format(quarter))
        label = ("least noise", "", "", "most noise")[quarter - 1]
        relative = [value / values[0] for value in values]
        right.plot(steps, relative, color=colour, label=f"quarter {quarter} {label}".strip(), marker=".")
    right.axhline(1, color="0.6", linewidth=1, linestyle=":")
    right.set(
        title=f"loss at fixed noise relative to the first, {'held-out' if held_out else 'training'} images",
        xlabel="step",
    )
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
    path = folder / "loss.png"
    figure.savefig(path, dpi=110)
    return path

"""`metrics.csv` logger: one row per step, written immediately; a resumed run appends to its earlier rows."""

import csv
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from sdft.runs.files import atomic_write
from sdft.runs.metrics_file import METRICS_FILE, read_metrics


class MetricsCsv(Logger):
    name, version, experiment = "", "", None

    def __init__(self, folder: Path):
        super().__init__()
        self.path = folder / METRICS_FILE
        self.columns, self.rows = read_metrics(self.path)

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict, step: int | None = None) -> None:
        row = {"step": step} | {name: float(value) for name, value in metrics.items()}
        new_columns = [name for name in row if name not in self.columns]
        self.columns += new_columns
        self.rows.append(row)
        if new_columns:
            self.rewrite()
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def log_hyperparams(self, *_) -> None:
        """Nothing to do: `config.yaml` contains them."""

    @rank_zero_only
    def truncate(self, count: int) -> None:
        """Keep the first `count` rows: an earlier process logged the others after its last checkpoint."""
        self.rows = self.rows[:count]
        used = {name for row in self.rows for name, value in row.items() if value not in ("", None)}
        self.columns = [name for name in self.columns if name in used]
        if self.columns:
            self.rewrite()
        else:
            self.path.unlink(missing_ok=True)

    def rewrite(self) -> None:
        with atomic_write(self.path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)

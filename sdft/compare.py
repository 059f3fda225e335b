"""Runs side by side: what each one learned, cost and reached."""

import csv
import json
from pathlib import Path

COLUMNS = {  # of the table, with how a value is printed
    "learns": "{:,}",
    "seconds": "{:.1f}",
    "s/it": "{:.3f}",
    "memory GB": "{:.2f}",
    "file MB": "{:.2f}",
    "validation loss": "{:.4f}",
}


def compare(runs: dict[Path, str], folder: Path) -> None:
    """Print a table of finished runs, by folder and label, and write it to `folder/table.csv`."""
    rows = [{"run": label, **facts(run)} for run, label in runs.items()]
    if not rows:
        return
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))
    print(
        f"on       {', '.join(dict.fromkeys(row['device'] for row in rows))}; s/it without the first step and without samples"
    )
    print(f"table    {folder / 'table.csv'}")


def facts(run: Path) -> dict:
    """One row, from `run.json`."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {
        "learns": sum(record["learns"].values()),
        "seconds": record["seconds"],
        "s/it": record["seconds_per_step"],
        "memory GB": record["last"]["memory_gb"],
        "file MB": record["result_mb"],
        "validation loss": record["validation_loss"][1],
        "device": record["device"],
        "folder": str(run),
    }


def table(rows: list[dict]) -> str:
    """Labels, then a column a fact."""
    cells = [["", *COLUMNS]]
    for row in rows:
        cells.append(
            [row["run"], *["–" if row[key] is None else form.format(row[key]) for key, form in COLUMNS.items()]]
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    sides = [str.ljust, *[str.rjust] * len(COLUMNS)]
    return "\n".join("  ".join(side(c, w) for side, c, w in zip(sides, row, widths, strict=True)) for row in cells)

"""Collect the results of benchmarks/gpu.sh: python benchmarks/gpu_table.py FOLDER writes FOLDER/gpu.json and prints a table."""

import json
import sys
from pathlib import Path

from measurement import report_table

MEASUREMENTS = ("ms a step", "images/s", "ms an image")  # columns of the benchmarks' first rows


def read_part(folder: Path, name: str) -> dict:
    """The result of a part; empty without one."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def describe_part(name: str, status: str, seconds: str, result: dict) -> tuple:
    """A row of the table."""
    first = next(iter(result.get("rows", [])), {})
    measured = ", ".join(f"{first[column]} {column}" for column in MEASUREMENTS if column in first)
    if "waits" in result:
        measured = f"{len(result['waits'])} lines wait"
    memory, expected, ratio = (
        f"{result[key]:.2f}" if result.get(key) else "" for key in ("memory_gb", "expected_gb", "ratio")
    )
    state = {"0": "ok", "124": "time limit", "137": "time limit", "left-out": "left out"}.get(
        status, f"failed ({status})"
    )
    return (name, state, seconds, measured, ratio, memory, expected)


def main(folder: Path) -> None:
    parts = [line.split() for line in (folder / "parts.txt").read_text().splitlines()]
    results = {name: read_part(folder, name) for name, *_ in parts}
    rows = [("part", "state", "seconds", "measured", "ours / bare", "peak GB", "estimated GB")]
    rows += [describe_part(*part, results[part[0]]) for part in parts]
    report_table("GPU", rows, folder / "gpu.json", parts=results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

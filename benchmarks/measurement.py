"""Shared by the benchmarks: measure a program in a separate process, describe the machine, print tables.

`python benchmarks/measurement.py PROGRAM ARGS …` runs PROGRAM unchanged, and writes the end time of each optimizer step and the
peak memory to the file $MEASUREMENT_FILE.
"""

import json
import os
import platform
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent


def measure_program(program: Path, args: list[str], cwd: Path, **environment: str) -> dict:
    """End time in seconds of each of the program's `steps`, the `seconds` of the process, and its peak `memory_gb`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measurement.json"
        env = os.environ | environment | {"MEASUREMENT_FILE": str(file), "START_TIME": repr(time.time())}
        done = subprocess.run(
            [sys.executable, __file__, str(program), *args], cwd=cwd, env=env, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{program.name} {' '.join(args)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(file.read_text()) | {"seconds": time.time() - float(env["START_TIME"])}


def run_with_clock() -> None:
    """Run the program in `sys.argv` with a hook that records the time of each optimizer step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    del sys.argv[0]
    steps, start, program = [], float(os.environ["START_TIME"]), sys.argv[0]
    sys.path[0] = str(Path(program).parent)

    def record_step(optimizer, *_):
        if optimizer.param_groups[0].get("name") != "probe":  # the memory estimate's, before the first step
            steps.append(time.time() - start)

    register_optimizer_step_post_hook(record_step)
    status = 0
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        status = end.code
    result = {"steps": steps, "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    Path(os.environ["MEASUREMENT_FILE"]).write_text(json.dumps(result))
    sys.exit(status)


def median_step_seconds(measurement: dict, first: int = 20) -> float:
    """Median seconds per step, from step `first` on."""
    ends = measurement["steps"][first:]
    return statistics.median(b - a for a, b in pairwise(ends))


def describe_machine() -> dict:
    """Device, versions and date of a measurement."""
    import torch

    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    device = (
        f"{torch.cuda.device_count()} × {names.pop()}" if names else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    return {
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def report_table(title: str, rows: list[tuple], file: Path | None = None, **facts) -> None:
    """Print a table whose first row names the columns; also write it, with `facts`, to `file` as JSON."""
    result = describe_machine()
    print(f"{title} · {result['device']} · torch {result['torch']}")
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if file:
        columns, *body = rows
        result |= {"title": title, "rows": [dict(zip(columns, row, strict=True)) for row in body]} | facts
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"saved      {file}")


def split_options(args: list[str], **defaults) -> tuple[dict, list[str]]:
    """The benchmark's own options, with the types of their defaults, and the remaining arguments for the program."""
    values = {key: value for key, _, value in (arg.partition("=") for arg in args) if key in defaults}
    remaining = [arg for arg in args if arg.partition("=")[0] not in defaults]
    return defaults | {key: type(defaults[key])(value) for key, value in values.items()}, remaining


if __name__ == "__main__":
    run_with_clock()

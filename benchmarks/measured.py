"""What the benchmarks share: a program under a stopwatch in a process of its own, tables, and the machine's name.

`python benchmarks/measured.py PROGRAM WORDS …` runs PROGRAM as it is, and writes to the file that $MEASURED names when each of
its optimizer steps ended, and the largest memory that it held.
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


def measured(program: Path, words: list[str], home: Path, **environment: str) -> dict:
    """Seconds from its start to the end of each of its `steps`, `seconds` of the whole process, and `memory_gb` at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "told.json"
        about = os.environ | environment | {"MEASURED": str(file), "STARTED": repr(time.time())}
        done = subprocess.run(
            [sys.executable, __file__, str(program), *words], cwd=home, env=about, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{program.name} {' '.join(words)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(file.read_text()) | {"seconds": time.time() - float(about["STARTED"])}


def inside() -> None:
    """Run the program that the words name, with a clock in torch's optimizers."""
    del sys.argv[0]
    steps, started, program = [], float(os.environ["STARTED"]), sys.argv[0]
    sys.path[0] = str(Path(program).parent)

    class Clock:
        """Sets itself into torch once the program has imported it, whenever that is."""

        def find_spec(self, name, path=None, target=None):
            if name == "torch.optim.swa_utils" and "torch.optim.optimizer" in sys.modules:
                sys.meta_path.remove(self)
                sys.modules["torch.optim.optimizer"].register_optimizer_step_post_hook(
                    lambda *_: steps.append(time.time() - started)
                )

    sys.meta_path.insert(0, Clock())
    status = 0
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        status = end.code
    told = {"steps": steps, "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    Path(os.environ["MEASURED"]).write_text(json.dumps(told))
    sys.exit(status)


def median_step_seconds(told: dict, first: int = 20) -> float:
    """The median time from one step to the next, without the first ones."""
    ends = told["steps"][first:]
    return statistics.median(b - a for a, b in pairwise(ends))


def machine() -> dict:
    """Where figures come from."""
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


def show(title: str, rows: list[tuple], file: Path | None = None, **facts) -> None:
    """A table whose first row names its columns; all figures as JSON in `file`, too."""
    told = machine()
    print(f"{title} · {told['device']} · torch {told['torch']}")
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if file:
        columns, *body = rows
        told |= {"title": title, "rows": [dict(zip(columns, row, strict=True)) for row in body]} | facts
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(f"written  {file}")


def options(words: list[str], **defaults) -> tuple[dict, list[str]]:
    """The benchmark's own words, typed as their defaults, and those that are left for the program."""
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.partition("=")[0] in defaults}
    rest = [word for word in words if word.partition("=")[0] not in defaults]
    return defaults | {key: type(defaults[key])(value) for key, value in given.items()}, rest


if __name__ == "__main__":
    inside()

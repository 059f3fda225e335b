"""A sweep is a file of words to try: every combination runs in a fresh process of its own, and a table compares them.

The files are those of `wandb sweep` with `method: grid`, so agents on many machines can share the same sweep.
"""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import yaml

from sdft.compare import compare

FOLDER = Path(__file__).parent.parent / "sweeps"


def sweep(name: str, words: list[str]) -> int:
    """Run all jobs of `sweeps/NAME.yaml`, with `words` in place of the file's own; returns the exit code.

    Jobs write to `multirun/NAME/STAMP/0`, `1` and so on. One that fails does not stop the others.
    """
    combinations = jobs(read(name), words)
    folder = Path("multirun") / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    labels = {folder / str(number): " ".join(changing(combinations, number)) for number in range(len(combinations))}
    codes = []
    for number, (job, (place, label)) in enumerate(zip(combinations, labels.items(), strict=True), 1):
        print(f"job      {number} of {len(combinations)}: {label}", flush=True)
        command = [sys.executable, sys.argv[0], *job, f"hydra.run.dir={place}", f"sweep={folder.name}"]
        codes.append(subprocess.run(command, check=False).returncode)
    compare({run: label for (run, label), code in zip(labels.items(), codes, strict=True) if not code}, folder)
    failed = [label for label, code in zip(labels.values(), codes, strict=True) if code]
    if failed:
        print(f"error: {len(failed)} of {len(codes)} jobs failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def read(name: str) -> dict[str, list]:
    """The values that each word is to take."""
    file = FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"sweeps={name}: choose one of {', '.join(sorted(p.stem for p in FOLDER.glob('*.yaml')))}")
    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        key: given["values"] if "values" in given else [given["value"]] for key, given in told["parameters"].items()
    }


def jobs(values: dict[str, list], words: list[str]) -> list[list[str]]:
    """The words of every job: all combinations, the last word changing fastest. `words` replace and add to `values`."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    keys = [key for key in values if key not in given]
    combinations = itertools.product(*[values[key] for key in keys])
    return [[f"{k}={text(v)}" for k, v in zip(keys, chosen, strict=True)] + words for chosen in combinations]


def text(value) -> str:
    """As a command line says it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def changing(combinations: list[list[str]], number: int) -> list[str]:
    """The words of one job that differ between jobs."""
    return [word for word in combinations[number] if any(word not in other for other in combinations)] or ["all"]

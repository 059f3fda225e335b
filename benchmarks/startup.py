"""Start-up time: python benchmarks/startup.py [rounds=5] KEY=VALUE …

Compares the time to the first optimizer step of `train.py steps=1 KEY=VALUE …` with a process that only imports its libraries:
`python -c "import torch, lightning, diffusers, transformers, peft"`. Each round measures every program once, in new folders:
nothing is cached. The ratio is the median over the rounds of seconds / seconds of that process, which takes about two of them
to exit; the row below it ends with the last import. Then the packages whose import takes longest.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from measurement import ROOT, measure_program, report_table, split_options

TRAIN = ROOT / "train.py"
BARE_IMPORTS = "import torch, lightning, diffusers, transformers, peft"
PROGRAMS = {"without logger and metrics": ["logger=none", "metrics=none"], "defaults": []}


def time_command(*command: str) -> tuple[float, str]:
    """Seconds of a Python process, and what it printed."""
    with tempfile.TemporaryDirectory() as cwd:
        start = time.time()
        done = subprocess.run([sys.executable, *command], cwd=cwd, check=True, capture_output=True, text=True)
        return time.time() - start, done.stdout


def time_bare_imports() -> dict[str, float]:
    """Seconds of a process with the bare imports, and to the end of the imports."""
    start = time.time()
    seconds, printed = time_command("-c", f"{BARE_IMPORTS}; import time; print(time.time())")
    return {"bare imports": seconds, "bare imports, without exit": float(printed.split()[-1]) - start}


def measure_round(overrides: list[str]) -> dict[str, float]:
    """Seconds of every program, by name."""
    seconds = {"--help": time_command(str(TRAIN), "--help")[0], **time_bare_imports()}
    for name, options in PROGRAMS.items():
        with tempfile.TemporaryDirectory() as cwd:
            measurement = measure_program(TRAIN, ["steps=1", *options, *overrides], Path(cwd))
        seconds[f"first step, {name}"] = measurement["steps"][0]
        seconds[f"whole process, {name}"] = measurement["seconds"]
    return seconds


def profile_imports(overrides: list[str], limit: int = 12) -> list[tuple]:
    """Seconds in the import of each package, not counting its own imports."""
    with tempfile.TemporaryDirectory() as cwd:
        command = [sys.executable, "-X", "importtime", str(TRAIN), "steps=1", *overrides]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    seconds: dict[str, float] = {}
    for microseconds, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        package = ".".join(name.split(".")[: 2 if name.startswith("torch.") else 1])
        seconds[package] = seconds.get(package, 0) + int(microseconds) / 1e6
    return [(name, f"{seconds[name]:.2f}") for name in sorted(seconds, key=seconds.get, reverse=True)[:limit]]


def main(args: list[str]) -> None:
    options, overrides = split_options(args, rounds=5)
    rounds = [measure_round(overrides) for _ in range(options["rounds"])]
    rows = [("program", "median s", "least s", "ratio to the bare imports")]
    for name in rounds[0]:
        seconds = [values[name] for values in rounds]
        ratio = median(values[name] / values["bare imports"] for values in rounds)
        rows.append((name, f"{median(seconds):.2f}", f"{min(seconds):.2f}", f"{ratio:.2f}"))
    report_table(" ".join(["startup", *overrides]), rows)
    print()
    report_table("imports", [("package", "s"), *profile_imports(overrides)])


if __name__ == "__main__":
    main(sys.argv[1:])

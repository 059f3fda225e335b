"""Start-up time: python benchmarks/startup.py [rounds=3] KEY=VALUE …

Prints the seconds to the end of `train.py --help`, of the first step of `train.py KEY=VALUE …` (without options: the embedded
model), and of `import torch` for comparison; then the packages whose import takes longest.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measurement import ROOT, measure_program, report_table, split_options


def time_command(*command: str, cwd: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - start


def profile_imports(overrides: list[str], cwd: str, limit: int = 12) -> list[tuple]:
    """Seconds in the import of each package, not counting its own imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "steps=1", *overrides],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    seconds: dict[str, float] = {}
    for microseconds, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        package = ".".join(name.split(".")[: 2 if name.startswith("torch.") else 1])
        seconds[package] = seconds.get(package, 0) + int(microseconds) / 1e6
    return [(name, f"{seconds[name]:.2f}") for name in sorted(seconds, key=seconds.get, reverse=True)[:limit]]


def main(args: list[str]) -> None:
    options, overrides = split_options(args, rounds=3, json="")
    train = ROOT / "train.py"
    with tempfile.TemporaryDirectory() as home:
        times: dict[str, list[float]] = {"--help": [], "import torch": [], "first step": []}
        for _ in range(options["rounds"]):
            times["--help"].append(time_command(str(train), "--help", cwd=home))
            times["import torch"].append(time_command("-c", "import torch", cwd=home))
            measurement = measure_program(train, ["steps=1", *overrides], Path(home))
            times["first step"].append(measurement["steps"][0])
        rows = [("until", "median s", "least s")]
        rows += [(name, f"{statistics.median(rounds):.2f}", f"{min(rounds):.2f}") for name, rounds in times.items()]
        file = Path(options["json"]) if options["json"] else None
        report_table(f"start {' '.join(overrides)}".strip(), rows, file, rounds=times)
        print()
        report_table("imports", [("package", "s"), *profile_imports(overrides, home)])


if __name__ == "__main__":
    main(sys.argv[1:])

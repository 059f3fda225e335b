"""How long it takes to begin: python benchmarks/startup.py [rounds=3] WORD=VALUE …

Seconds to the end of `train.py --help`, to the end of the first step of `train.py WORD=VALUE …` (by default the embedded run as
it is) and to the end of `import torch` beside it; then the packages whose import takes longest.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import ROOT, measured, options, show


def seconds(*command: str, home: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=home, check=True, capture_output=True)
    return time.perf_counter() - start


def profile(words: list[str], home: str, most: int = 12) -> list[tuple]:
    """Seconds in the import of each package, whoever imported it first, without those it imported itself."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "steps=1", *words],
        cwd=home,
        capture_output=True,
        text=True,
    )
    spent: dict[str, float] = {}
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr):
        package = ".".join(name.split(".")[: 2 if name.startswith("torch.") else 1])
        spent[package] = spent.get(package, 0) + int(own) / 1e6
    return [(name, f"{spent[name]:.2f}") for name in sorted(spent, key=spent.get, reverse=True)[:most]]


def main(words: list[str]) -> None:
    asked, words = options(words, rounds=3, json="")
    train = ROOT / "train.py"
    with tempfile.TemporaryDirectory() as home:
        found: dict[str, list[float]] = {"--help": [], "import torch": [], "first step": []}
        for _ in range(asked["rounds"]):
            found["--help"].append(seconds(str(train), "--help", home=home))
            found["import torch"].append(seconds("-c", "import torch", home=home))
            found["first step"].append(measured(train, ["steps=1", *words], Path(home))["steps"][0])
        rows = [("until", "median s", "least s")]
        rows += [(name, f"{statistics.median(all_):.2f}", f"{min(all_):.2f}") for name, all_ in found.items()]
        show(f"start {' '.join(words)}".strip(), rows, Path(asked["json"]) if asked["json"] else None, rounds=found)
        print()
        show("imports", [("package", "s"), *profile(words, home)])


if __name__ == "__main__":
    main(sys.argv[1:])

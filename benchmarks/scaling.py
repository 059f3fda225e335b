"""Images a second and memory against one word: python benchmarks/scaling.py batch_size=1,2,4,8 WORD=VALUE …

Any word of train.py with values parted by commas: batch_size, resolution, rank, devices (with strategy=ddp). Each value is a run
in a process of its own, on noise, without logs, samples or validation.
"""

import json
import sys
import tempfile
from pathlib import Path

from data import generate
from measured import ROOT, measured, median_step_seconds, options, show
from step import PLAIN


def main(words: list[str]) -> None:
    asked, words = options(words, steps=30, json="")
    varied = [word for word in words if "," in word.partition("=")[2] and "[" not in word]
    if len(varied) != 1:
        raise SystemExit("give one word several values, such as batch_size=1,2,4")
    key, _, values = varied[0].partition("=")
    fixed = dict(word.split("=", 1) for word in words if word != varied[0])
    rows = [(key, "ms a step", "images/s", "memory GB")]
    with tempfile.TemporaryDirectory() as home:
        generate(Path(home, "noise"), 64, 512)
        data = [] if any(word.startswith("data") for word in words) else ["data=folder", f"data.path={home}/noise"]
        for value in values.split(","):
            about = fixed | {key: value}
            given = [*(f"{name}={worth}" for name, worth in about.items()), f"hydra.run.dir={home}/{value}"]
            told = measured(ROOT / "train.py", [*PLAIN, *data, f"steps={asked['steps']}", *given], Path(home))
            facts = json.loads(Path(home, value, "run.json").read_text())
            seconds = median_step_seconds(told, 5) if told["steps"] else facts["seconds_per_step"]
            images = int(about.get("batch_size", 1)) * int(about.get("devices", 1))
            rows.append(
                (value, f"{1000 * seconds:.1f}", f"{images / seconds:.1f}", f"{facts['last']['memory_gb']:.2f}")
            )
    show(" ".join(words), rows, Path(asked["json"]) if asked["json"] else None)


if __name__ == "__main__":
    main(sys.argv[1:])

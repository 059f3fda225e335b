"""Images per second and memory as a function of one option: python benchmarks/scaling.py batch_size=1,2,4,8 KEY=VALUE …

The option of train.py is given comma-separated values: batch_size, resolution, rank, devices (with strategy=ddp). Each value is a
run in a separate process, on noise images, without logging, sampling or validation.
"""

import json
import sys
import tempfile
from pathlib import Path

from data import generate_images
from measurement import ROOT, measure_program, median_step_seconds, report_table, split_options
from step import QUIET_OVERRIDES


def main(args: list[str]) -> None:
    options, overrides = split_options(args, steps=30, json="")
    varied = [override for override in overrides if "," in override.partition("=")[2] and "[" not in override]
    if len(varied) != 1:
        raise SystemExit("give exactly one option several values, such as batch_size=1,2,4")
    key, _, values = varied[0].partition("=")
    fixed = dict(override.split("=", 1) for override in overrides if override != varied[0])
    rows = [(key, "ms a step", "images/s", "memory GB")]
    with tempfile.TemporaryDirectory() as home:
        generate_images(Path(home, "noise"), 64, 512)
        has_data = any(override.startswith("data") for override in overrides)
        data = [] if has_data else ["data=folder", f"data.path={home}/noise"]
        for value in values.split(","):
            settings = fixed | {key: value}
            run = [f"steps={options['steps']}", *(f"{name}={setting}" for name, setting in settings.items())]
            run_args = [*QUIET_OVERRIDES, *data, *run, f"hydra.run.dir={home}/{value}"]
            measurement = measure_program(ROOT / "train.py", run_args, Path(home))
            facts = json.loads(Path(home, value, "run.json").read_text())
            seconds = median_step_seconds(measurement, 5) if measurement["steps"] else facts["seconds_per_step"]
            images = int(settings.get("batch_size", 1)) * int(settings.get("devices", 1))
            rows.append(
                (value, f"{1000 * seconds:.1f}", f"{images / seconds:.1f}", f"{facts['last']['memory_gb']:.2f}")
            )
    report_table(" ".join(overrides), rows, Path(options["json"]) if options["json"] else None)


if __name__ == "__main__":
    main(sys.argv[1:])

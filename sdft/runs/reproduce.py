"""A run again, and whether it came to the same: weights, metrics and samples to the bit, and what differs when they do not."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageChops

import sdft.runs.metrics_csv as metrics_file
from sdft.runs.checkpoint_file import read_checkpoint
from sdft.runs.files import read_config, read_json
from sdft.runs.resume import diff_configs

TIMING_METRICS = ("images_per_second", "memory_gb")  # of this time and this machine
ENVIRONMENT_KEYS = ("commit", "digests", "versions", "python", "device", "batch")


def check_reproducible(cfg: DictConfig) -> None:
    """`ValueError` unless the run is there, ended, and ran with the same words throughout: these."""
    folder = Path(cfg.reproduce).expanduser()
    record = read_json(folder / "run.json")
    if not record:
        raise ValueError(f"reproduce={cfg.reproduce}: no run there; give a run's folder, or last")
    if (state := record.get("state")) != "finished":
        raise ValueError(f"reproduce={folder}: did not finish ({state}); resume={folder} goes on with it")
    if on_the_way := [part for part in record["resumed"] if part["changed"]]:
        words = ", ".join(on_the_way[0]["changed"])
        raise ValueError(
            f"reproduce={folder}: went on with other {words} at step {on_the_way[0]['step']}; repeat another"
        )
    old, new = (OmegaConf.to_container(one) for one in (read_config(folder), cfg))
    other = [name for name in diff_configs(old, new) if name not in ("reproduce", "name", "tags", "sweep")]
    if other:
        raise ValueError(f"reproduce={folder}: {other[0]} is another; give no other words, or train without repeat")


def compare_bitwise(before: Path, after: Path) -> tuple[bool, list[str]]:
    """Whether both runs came to the same, and lines that say what does not, and what else is unlike."""
    found = [*compare_weights(before, after), *compare_metrics(before, after), *compare_samples(before, after)]
    if not found:
        return True, []
    one, other = (read_json(folder / "run.json") for folder in (before, after))
    unlike = [f"{key}: {one[key]} and {other[key]}" for key in ENVIRONMENT_KEYS if one[key] != other[key]]
    return False, found + (unlike or ["nothing else that is known differs: this device computes otherwise each time"])


def compare_weights(before: Path, after: Path) -> Iterator[str]:
    """What was learned, as the last checkpoints hold it, and its averages."""
    one, other = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (before, after))
    kinds = {"weights": lambda state: state["state_dict"]}
    if "EMA" in one["callbacks"]:
        kinds["averaged weights"] = lambda state: state["callbacks"]["EMA"]["average"]
    for kind, of in kinds.items():
        gaps = {name: float((w - of(other)[name]).abs().max()) for name, w in of(one).items()}
        apart = {name: gap for name, gap in gaps.items() if gap != 0}
        if apart:
            worst = max(apart, key=apart.get)
            yield f"{kind}: {len(apart)} of {len(gaps)} differ, most by {apart[worst]:.1e} ({worst})"


def compare_metrics(before: Path, after: Path) -> Iterator[str]:
    """The first value that differs."""
    one, other = (read_comparable_rows(folder / metrics_file.METRICS_FILE) for folder in (before, after))
    if len(one) != len(other):
        yield f"metrics: {len(one)} rows and {len(other)}"
    for a, b in zip(one, other, strict=False):
        if names := [name for name in a if a[name] != b.get(name)]:
            yield f"metrics: {names[0]} at step {a['step']} is {a[names[0]]} and {b.get(names[0])}"
            return


def read_comparable_rows(file: Path) -> list[dict[str, str]]:
    return [
        {k: v for k, v in row.items() if v and not k.endswith(TIMING_METRICS)}
        for row in metrics_file.read_metrics(file)[1]
    ]


def compare_samples(before: Path, after: Path) -> Iterator[str]:
    for file in sorted((before / "samples").rglob("*.png")):
        other = after / file.relative_to(before)
        if not other.is_file() or ImageChops.difference(Image.open(file), Image.open(other)).getbbox():
            yield f"samples: {file.relative_to(before)} is the first that differs"
            return

"""Reproduce a run, and compare weights, metrics and samples bit for bit with the original."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageChops

import sdft.runs.metrics_file as metrics_file
from sdft.options.quoting import format_for_shell
from sdft.runs.checkpoint_file import read_checkpoint
from sdft.runs.metadata import RECORD_FILE, read_record
from sdft.runs.resume import diff_configs
from sdft.runs.run_config import read_stored_config

TIMING_METRICS = ("images_per_second", "memory_gb")  # differ between runs and machines
ENVIRONMENT_KEYS = ("commit", "digests", "versions", "python", "device", "batch")


def check_reproducible(cfg: DictConfig) -> None:
    """Raise `ValueError` unless `cfg.reproduce` is a finished run, trained with the options of `cfg` from start to end."""
    folder = Path(cfg.reproduce).expanduser()
    if not (folder / RECORD_FILE).is_file():
        raise ValueError(f"reproduce={folder}: not a run folder (no {RECORD_FILE}); give a finished run")
    record = read_record(folder, "resumed")
    if (state := record["state"]) != "finished":
        raise ValueError(
            f"reproduce={folder}: the run is not finished ({state}); use {format_for_shell('resume', folder)} to continue it"
        )
    if changes := [entry for entry in record["resumed"] if entry.get("changed")]:
        names = ", ".join(changes[0]["changed"])
        raise ValueError(
            f"reproduce={folder}: {names} changed at step {changes[0].get('step')}; give a run with constant options"
        )
    old, new = read_stored_config(folder), OmegaConf.to_container(cfg)
    changed = [name for name in diff_configs(old, new) if name not in ("reproduce", "name", "tags", "sweep")]
    if changed:
        raise ValueError(f"reproduce={folder}: {changed[0]} differs from that run; remove this option, or reproduce=…")


def compare_bitwise(before: Path, after: Path) -> tuple[bool, list[str]]:
    """Whether two runs are bit-identical, and a line for each difference in their results and environments."""
    differences = [*compare_weights(before, after), *compare_metrics(before, after), *compare_samples(before, after)]
    if not differences:
        return True, []
    old, new = (read_record(folder, *ENVIRONMENT_KEYS) for folder in (before, after))
    causes = [f"{key}: {old[key]} and {new[key]}" for key in ENVIRONMENT_KEYS if old[key] != new[key]]
    return False, differences + (causes or ["the environments are equal: this device is not deterministic"])


def compare_weights(before: Path, after: Path) -> Iterator[str]:
    """Compare the trained and EMA weights of the last checkpoints."""
    old, new = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (before, after))
    weight_getters = {"weights": lambda state: state["state_dict"]}
    if old["callbacks"]["ema"]["average"]:
        weight_getters["EMA weights"] = lambda state: state["callbacks"]["ema"]["average"]
    for kind, get_weights in weight_getters.items():
        gaps = {name: float((w - get_weights(new)[name]).abs().max()) for name, w in get_weights(old).items()}
        different = {name: gap for name, gap in gaps.items() if gap != 0}
        if different:
            worst = max(different, key=different.get)
            yield f"{kind}: {len(different)} of {len(gaps)} differ, by up to {different[worst]:.1e} ({worst})"


def compare_metrics(before: Path, after: Path) -> Iterator[str]:
    """Describe the first metric value that differs."""
    old, new = (read_comparable_rows(folder / metrics_file.METRICS_FILE) for folder in (before, after))
    if len(old) != len(new):
        yield f"metrics: {len(old)} rows and {len(new)}"
    for a, b in zip(old, new, strict=False):
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

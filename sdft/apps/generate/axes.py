"""Axes of an image grid: one option each, with its values and their labels."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from sdft.data.prompts import read_prompts
from sdft.runs.metadata import read_record
from sdft.runs.run_config import read_stored_config

NUMBER_TYPES = {"strength": float, "guidance_scale": float, "seed": int, "steps": int, "rank": int}
NUMBER_TYPE_NAMES = {int: "integers", float: "numbers"}
MAX_AXIS_VALUES = 200  # values of an axis


@dataclass
class Axis:
    """`option` takes each of `values`, labelled `labels`."""

    option: str
    values: list
    labels: list[str]

    @property
    def title(self) -> str:
        return self.option.replace("_", " ")


def parse_axis(side: str, request, runs: str | None = None) -> Axis | None:
    """Parse the axis `x` or `y`, None if it is not set; `rank` searches the folder `runs`."""
    if not OmegaConf.is_dict(request):
        raise ValueError(f"{side}={request}: give {side}.OPTION=[…], such as {side}.strength=[0,0.5,1]")
    options = {option: value for option, value in request.items() if value is not None}
    if len(options) > 1:
        keys = " ".join(f"{side}.{option}" for option in options)
        raise ValueError(f"{keys}: an axis has one option; put the other on y")
    if not options:
        return None
    option, value = options.popitem()
    value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    axis = AXIS_PARSERS.get(option, parse_value_axis)(f"{side}.{option}", option, value, runs)
    if not 1 <= len(axis.values) <= MAX_AXIS_VALUES:
        raise ValueError(f"{side}.{option}: {len(axis.values)} values; give 1 to {MAX_AXIS_VALUES}")
    return axis


def parse_value_axis(key: str, option: str, value, runs) -> Axis:
    """Parse numbers or names."""
    values = value if isinstance(value, list) else [value]
    kind = NUMBER_TYPES.get(option)
    if kind is None:
        names = [None if one in (None, "null") else str(one) for one in values]
        return Axis(option, names, [name or "model default" for name in names])
    for one in values:
        is_number = isinstance(one, int | kind) and not isinstance(one, bool)
        if not is_number or not math.isfinite(one):
            raise ValueError(f"{key}={one}: give a list of {NUMBER_TYPE_NAMES[kind]}")
    return Axis(option, [kind(one) for one in values], [f"{one:g}" if kind is float else str(one) for one in values])


def parse_prompt_axis(key: str, option: str, value, runs) -> Axis:
    prompts = read_prompts(value, key)
    return Axis(option, prompts, prompts)


def parse_weight_axis(key: str, option: str, value, runs) -> Axis:
    """Parse lists with one weight per adapter, or numbers for a single adapter."""
    rows = [one if isinstance(one, list) else [one] for one in (value if isinstance(value, list) else [value])]
    weights = [weight for row in rows for weight in row]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in weights):
        raise ValueError(f"{key}={value}: give a list of weights per cell, such as {key}=[[1,0],[0.5,0.5]]")
    labels = [" : ".join(f"{one:g}" for one in row) for row in rows]
    return Axis(option, [tuple(float(one) for one in row) for row in rows], labels)


def parse_run_axis(key: str, option: str, value, runs) -> Axis:
    """Parse run folders, or a folder of runs such as a sweep, labelled by the overrides in which they differ."""
    if isinstance(value, str):
        folders = list_runs_in_folder(Path(value).expanduser())
        if not folders:
            raise ValueError(f"{key}={value}: contains no runs; give a sweep's folder, or a list of run folders")
    else:
        folders = [Path(str(one)).expanduser() for one in value]
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"{key}={folder}: not a run folder (no config.yaml)")
    return Axis(option, [str(folder) for folder in folders], label_runs_by_overrides(folders))


def parse_rank_axis(key: str, option: str, value, runs) -> Axis:
    """Select the runs of these ranks, or of `all` ranks, in the folder `runs`."""
    folders = list_runs_in_folder(Path(runs).expanduser()) if runs else []
    run_ranks = [read_stored_config(folder).get("rank") for folder in folders]
    available = sorted({rank for rank in run_ranks if isinstance(rank, int)})
    if not available:
        raise ValueError(f"{key}={value}: requires run=SWEEP, a folder with runs of several ranks")
    ranks = available if value == "all" else parse_value_axis(key, option, value, None).values
    for rank in ranks:
        if (count := run_ranks.count(rank)) != 1:
            hint = "use x.run=[…]" if count else f"available: {', '.join(map(str, available))}"
            raise ValueError(f"{key}={rank}: {count or 'no'} runs of this rank in {runs}; {hint}")
    return Axis("run", [str(folders[run_ranks.index(rank)]) for rank in ranks], [f"rank {rank}" for rank in ranks])


def parse_checkpoint_axis(key: str, option: str, value, run: str | None) -> Axis:
    """Parse steps, `best`, `result` or `all` (see `expand_all_checkpoints`); step 0 is the base."""
    values = [str(one) for one in (value if isinstance(value, list) else [value])]
    return Axis(option, values, [format_checkpoint_label(one) for one in values])


def format_checkpoint_label(checkpoint: str) -> str:
    return ("base" if checkpoint == "0" else f"step {checkpoint}") if checkpoint.isdecimal() else checkpoint


AXIS_PARSERS = {
    "prompt": parse_prompt_axis,
    "weights": parse_weight_axis,
    "run": parse_run_axis,
    "rank": parse_rank_axis,
    "checkpoint": parse_checkpoint_axis,
}


def expand_all_checkpoints(axis: Axis | None, run: Path | None) -> Axis | None:
    """Replace `checkpoint=all` by the base and every saved step of `run`."""
    if axis is None or axis.option != "checkpoint" or axis.values != ["all"]:
        return axis
    if run is None:
        raise ValueError("checkpoint=all: requires one run; give run=…")
    steps = sorted(int(f.stem.removeprefix("step-")) for f in (run / "checkpoints").glob("step-*.ckpt"))
    if not steps:
        raise ValueError(f"checkpoint=all: {run} has none; train with save_every=N checkpoints_total_limit=9")
    values = [str(step) for step in (0, *steps)]
    return replace(axis, values=values, labels=[format_checkpoint_label(value) for value in values])


def list_runs_in_folder(folder: Path) -> list[Path]:
    """Runs directly in a folder, those with numbers as names first and in numeric order."""
    runs = [file.parent for file in folder.glob("*/run.json") if (file.parent / "config.yaml").is_file()]
    return sorted(runs, key=lambda run: (int(run.name), "") if run.name.isdecimal() else (1 << 60, run.name))


def label_runs_by_overrides(folders: list[Path]) -> list[str]:
    """Overrides of each run that not all runs share, or folder names if these are not distinct."""
    overrides = []
    for folder in folders:
        overrides.append(read_record(folder, "overrides")["overrides"])
    shared = set(overrides[0]).intersection(*overrides[1:]) if overrides else set()
    labels = [" ".join(override for override in of_run if override not in shared) for of_run in overrides]
    ambiguous = len(set(labels)) < len(labels)
    return [label if label and not ambiguous else folder.name for label, folder in zip(labels, folders, strict=True)]


def fill_free_axes(
    x: Axis | None, y: Axis | None, prompts: list[str], seeds: list[int]
) -> tuple[Axis | None, Axis | None]:
    """Put several prompts on a free y axis, and several seeds on a free x axis."""
    used = {axis.option for axis in (x, y) if axis}
    if len(prompts) > 1 and y is None and "prompt" not in used:
        y = Axis("prompt", list(prompts), list(prompts))
    if len(seeds) > 1 and x is None and "seed" not in used:
        x = Axis("seed", list(seeds), [str(seed) for seed in seeds])
    return x, y

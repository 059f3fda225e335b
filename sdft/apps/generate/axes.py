"""The axes of a grid: one option each, with all its values, and what their rows or columns are called."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from sdft.data.prompts import read_prompts
from sdft.runs.files import read_config, read_json

AXIS_OPTIONS = (
    "strength",
    "prompt",
    "checkpoint",
    "run",
    "rank",
    "seed",
    "steps",
    "guidance_scale",
    "scheduler",
    "weights",
)
NUMBER_TYPES = {"strength": float, "guidance_scale": float, "seed": int, "steps": int, "rank": int}
NUMBER_TYPE_NAMES = {int: "whole numbers", float: "numbers"}
MAX_AXIS_VALUES = 200  # values of an axis


@dataclass
class Axis:
    """`option` takes each of `values`, which are called `labels`."""

    option: str
    values: list
    labels: list[str]

    @property
    def title(self) -> str:
        return self.option.replace("_", " ")


def parse_axis(side: str, request, runs: str | None = None) -> Axis | None:
    """That of `x` or `y`; `runs` is the folder of runs in which `rank` looks for them."""
    if not OmegaConf.is_dict(request):
        raise ValueError(f"{side}={request}: give {side}.WORD=[…], such as {side}.strength=[0,0.5,1]")
    given = {option: value for option, value in request.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"{' '.join(f'{side}.{option}' for option in given)}: an axis is of one option; give the other to y"
        )
    if not given:
        return None
    option, value = given.popitem()
    value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    found = AXIS_PARSERS.get(option, parse_value_axis)(f"{side}.{option}", option, value, runs)
    if not 1 <= len(found.values) <= MAX_AXIS_VALUES:
        raise ValueError(f"{side}.{option}: {len(found.values)} values; give 1 to {MAX_AXIS_VALUES}")
    return found


def parse_value_axis(key: str, option: str, value, runs) -> Axis:
    """Numbers, or names."""
    values = value if isinstance(value, list) else [value]
    kind = NUMBER_TYPES.get(option)
    if kind is None:
        names = [None if one in (None, "null") else str(one) for one in values]
        return Axis(option, names, [name or "the model's" for name in names])
    for one in values:
        plain = isinstance(one, int | kind) and not isinstance(one, bool)
        if not plain or not math.isfinite(one):
            raise ValueError(f"{key}={one}: give a list of {NUMBER_TYPE_NAMES[kind]}")
    return Axis(option, [kind(one) for one in values], [f"{one:g}" if kind is float else str(one) for one in values])


def parse_prompt_axis(key: str, option: str, value, runs) -> Axis:
    prompts = read_prompts(value, key)
    return Axis(option, prompts, prompts)


def parse_weight_axis(key: str, option: str, value, runs) -> Axis:
    """Lists with a weight for each adapter; of a single adapter also numbers."""
    rows = [one if isinstance(one, list) else [one] for one in (value if isinstance(value, list) else [value])]
    flat = [one for row in rows for one in row]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in flat):
        raise ValueError(f"{key}={value}: give a list of weights for each place, as {key}=[[1,0],[0.5,0.5]]")
    labels = [" : ".join(f"{one:g}" for one in row) for row in rows]
    return Axis(option, [tuple(float(one) for one in row) for row in rows], labels)


def parse_run_axis(key: str, option: str, value, runs) -> Axis:
    """Run folders, or one folder with several in it, as a sweep leaves; called by the words in which they differ."""
    if isinstance(value, str):
        folders = list_runs_in_folder(Path(value).expanduser())
        if not folders:
            raise ValueError(f"{key}={value}: no runs in it; give a sweep's folder, or a list of run folders")
    else:
        folders = [Path(str(one)).expanduser() for one in value]
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"{key}={folder}: not a run folder (no config.yaml)")
    return Axis(option, [str(folder) for folder in folders], label_runs_by_overrides(folders))


def parse_rank_axis(key: str, option: str, value, runs) -> Axis:
    """The runs of these ranks among those of `run`, or of all their ranks."""
    folders = list_runs_in_folder(Path(runs).expanduser()) if runs else []
    ranks = [read_config(folder).get("rank") for folder in folders]
    there = sorted({rank for rank in ranks if rank is not None})
    if not there:
        raise ValueError(f"{key}={value}: give run=SWEEP with it, a folder with runs of several ranks in it")
    wanted = there if value == "all" else parse_value_axis(key, option, value, None).values
    for rank in wanted:
        if (count := ranks.count(rank)) != 1:
            more = "give them with x.run=[…]" if count else f"there are {', '.join(map(str, there))}"
            raise ValueError(f"{key}={rank}: {count or 'no'} runs of this rank in {runs}; {more}")
    return Axis("run", [str(folders[ranks.index(rank)]) for rank in wanted], [f"rank {rank}" for rank in wanted])


def parse_checkpoint_axis(key: str, option: str, value, run: str | None) -> Axis:
    """Steps, `best` or `result`; step 0 is the base. `all` waits for the run."""
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


def expand_all_checkpoints(one: Axis | None, run: Path | None) -> Axis | None:
    """`x.checkpoint=all` as the base and every step of `run`."""
    if one is None or one.option != "checkpoint" or one.values != ["all"]:
        return one
    if run is None:
        raise ValueError("checkpoint=all: is of one run; give run=… with it")
    steps = sorted(int(f.stem.removeprefix("step-")) for f in (run / "checkpoints").glob("step-*.ckpt"))
    if not steps:
        raise ValueError(f"checkpoint=all: {run} has none; train with save_every=N checkpoints_total_limit=9")
    values = [str(step) for step in (0, *steps)]
    return replace(one, values=values, labels=[format_checkpoint_label(value) for value in values])


def list_runs_in_folder(folder: Path) -> list[Path]:
    """Those directly in a folder, in the order of numbers in their names."""
    found = [file.parent for file in folder.glob("*/run.json") if (file.parent / "config.yaml").is_file()]
    return sorted(found, key=lambda run: (int(run.name), "") if run.name.isdecimal() else (1 << 60, run.name))


def label_runs_by_overrides(folders: list[Path]) -> list[str]:
    """What each was given that not all were, else its name."""
    words = []
    for folder in folders:
        words.append([str(option) for option in read_json(folder / "run.json").get("overrides", [])])
    shared = set(words[0]).intersection(*words[1:]) if words else set()
    labels = [" ".join(option for option in mine if option not in shared) for mine in words]
    alike = len(set(labels)) < len(labels)
    return [label if label and not alike else folder.name for label, folder in zip(labels, folders, strict=True)]


def fill_free_axes(
    x: Axis | None, y: Axis | None, prompts: list[str], seeds: list[int]
) -> tuple[Axis | None, Axis | None]:
    """The axes, where several prompts become the rows, and several images the columns, if nothing else is there."""
    taken = {one.option for one in (x, y) if one}
    if len(prompts) > 1 and y is None and "prompt" not in taken:
        y = Axis("prompt", list(prompts), list(prompts))
    if len(seeds) > 1 and x is None and "seed" not in taken:
        x = Axis("seed", list(seeds), [str(seed) for seed in seeds])
    return x, y

"""The axes of a grid: one word each, with all its values, and what their rows or columns are called."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from sdft.data.prompts import read_prompts
from sdft.runs.files import read_config, read_json

WORDS = ("strength", "prompt", "checkpoint", "run", "rank", "seed", "steps", "guidance_scale", "scheduler", "weights")
NUMBERS = {"strength": float, "guidance_scale": float, "seed": int, "steps": int, "rank": int}
KINDS = {int: "whole numbers", float: "numbers"}
MOST = 200  # values of an axis


@dataclass
class Axis:
    """`word` takes each of `values`, which are called `labels`."""

    word: str
    values: list
    labels: list[str]

    @property
    def title(self) -> str:
        return self.word.replace("_", " ")


def axis(side: str, asked, runs: str | None = None) -> Axis | None:
    """That of `x` or `y`; `runs` is the folder of runs in which `rank` looks for them."""
    if not OmegaConf.is_dict(asked):
        raise ValueError(f"{side}={asked}: give {side}.WORD=[…], such as {side}.strength=[0,0.5,1]")
    given = {word: value for word, value in asked.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"{' '.join(f'{side}.{word}' for word in given)}: an axis is of one word; give the other to y")
    if not given:
        return None
    word, value = given.popitem()
    value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    found = READERS.get(word, listed)(f"{side}.{word}", word, value, runs)
    if not 1 <= len(found.values) <= MOST:
        raise ValueError(f"{side}.{word}: {len(found.values)} values; give 1 to {MOST}")
    return found


def listed(key: str, word: str, value, runs) -> Axis:
    """Numbers, or names."""
    values = value if isinstance(value, list) else [value]
    kind = NUMBERS.get(word)
    if kind is None:
        names = [None if one in (None, "null") else str(one) for one in values]
        return Axis(word, names, [name or "the model's" for name in names])
    for one in values:
        plain = isinstance(one, int | kind) and not isinstance(one, bool)
        if not plain or not math.isfinite(one):
            raise ValueError(f"{key}={one}: give a list of {KINDS[kind]}")
    return Axis(word, [kind(one) for one in values], [f"{one:g}" if kind is float else str(one) for one in values])


def of_prompts(key: str, word: str, value, runs) -> Axis:
    prompts = read_prompts(value, key)
    return Axis(word, prompts, prompts)


def of_weights(key: str, word: str, value, runs) -> Axis:
    """Lists with a weight for each adapter; of a single adapter also numbers."""
    rows = [one if isinstance(one, list) else [one] for one in (value if isinstance(value, list) else [value])]
    flat = [one for row in rows for one in row]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in flat):
        raise ValueError(f"{key}={value}: give a list of weights for each place, as {key}=[[1,0],[0.5,0.5]]")
    labels = [" : ".join(f"{one:g}" for one in row) for row in rows]
    return Axis(word, [tuple(float(one) for one in row) for row in rows], labels)


def of_runs(key: str, word: str, value, runs) -> Axis:
    """Run folders, or one folder with several in it, as a sweep leaves; called by the words in which they differ."""
    if isinstance(value, str):
        folders = runs_in(Path(value).expanduser())
        if not folders:
            raise ValueError(f"{key}={value}: no runs in it; give a sweep's folder, or a list of run folders")
    else:
        folders = [Path(str(one)).expanduser() for one in value]
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise ValueError(f"{key}={folder}: not a run folder (no config.yaml)")
    return Axis(word, [str(folder) for folder in folders], differing(folders))


def of_ranks(key: str, word: str, value, runs) -> Axis:
    """The runs of these ranks among those of `run`, or of all their ranks."""
    folders = runs_in(Path(runs).expanduser()) if runs else []
    ranks = [read_config(folder).get("rank") for folder in folders]
    there = sorted({rank for rank in ranks if rank is not None})
    if not there:
        raise ValueError(f"{key}={value}: give run=SWEEP with it, a folder with runs of several ranks in it")
    wanted = there if value == "all" else listed(key, word, value, None).values
    for rank in wanted:
        if (count := ranks.count(rank)) != 1:
            more = "give them with x.run=[…]" if count else f"there are {', '.join(map(str, there))}"
            raise ValueError(f"{key}={rank}: {count or 'no'} runs of this rank in {runs}; {more}")
    return Axis("run", [str(folders[ranks.index(rank)]) for rank in wanted], [f"rank {rank}" for rank in wanted])


def of_checkpoints(key: str, word: str, value, run: str | None) -> Axis:
    """Steps, `best` or `result`; step 0 is the base. `all` waits for the run."""
    values = [str(one) for one in (value if isinstance(value, list) else [value])]
    return Axis(word, values, [called(one) for one in values])


def called(checkpoint: str) -> str:
    return ("base" if checkpoint == "0" else f"step {checkpoint}") if checkpoint.isdecimal() else checkpoint


READERS = {
    "prompt": of_prompts,
    "weights": of_weights,
    "run": of_runs,
    "rank": of_ranks,
    "checkpoint": of_checkpoints,
}


def with_all(one: Axis | None, run: Path | None) -> Axis | None:
    """`x.checkpoint=all` as the base and every step of `run`."""
    if one is None or one.word != "checkpoint" or one.values != ["all"]:
        return one
    if run is None:
        raise ValueError("checkpoint=all: is of one run; give run=… with it")
    steps = sorted(int(f.stem.removeprefix("step-")) for f in (run / "checkpoints").glob("step-*.ckpt"))
    if not steps:
        raise ValueError(f"checkpoint=all: {run} has none; train with save_every=N checkpoints_total_limit=9")
    values = [str(step) for step in (0, *steps)]
    return replace(one, values=values, labels=[called(value) for value in values])


def runs_in(folder: Path) -> list[Path]:
    """Those directly in a folder, in the order of numbers in their names."""
    found = [file.parent for file in folder.glob("*/run.json") if (file.parent / "config.yaml").is_file()]
    return sorted(found, key=lambda run: (int(run.name), "") if run.name.isdecimal() else (1 << 60, run.name))


def differing(folders: list[Path]) -> list[str]:
    """What each was given that not all were, else its name."""
    words = []
    for folder in folders:
        words.append([str(word) for word in read_json(folder / "run.json").get("overrides", [])])
    shared = set(words[0]).intersection(*words[1:]) if words else set()
    labels = [" ".join(word for word in mine if word not in shared) for mine in words]
    alike = len(set(labels)) < len(labels)
    return [label if label and not alike else folder.name for label, folder in zip(labels, folders, strict=True)]


def free(x: Axis | None, y: Axis | None, prompts: list[str], seeds: list[int]) -> tuple[Axis | None, Axis | None]:
    """The axes, where several prompts become the rows, and several images the columns, if nothing else is there."""
    taken = {one.word for one in (x, y) if one}
    if len(prompts) > 1 and y is None and "prompt" not in taken:
        y = Axis("prompt", list(prompts), list(prompts))
    if len(seeds) > 1 and x is None and "seed" not in taken:
        x = Axis("seed", list(seeds), [str(seed) for seed in seeds])
    return x, y

"""Going on with a run: in its own folder, with its own words, as the same run on W&B."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from sdft.runs.files import read_config, read_json

LAST, GOES_ON, AGAIN = "last", "resume", "reproduce"
OWN = (GOES_ON, AGAIN, "allow_config_change")  # words of going on itself
FREE = {*OWN, "workers", "save_every", "checkpoints_total_limit"}  # words that change no result
GIVEN = Path(".hydra", "overrides.yaml")


def words(given: list[str]) -> list[str]:
    """A command line with the words of the run that it goes on with, or repeats: `resume=FOLDER`, `reproduce=last`.

    Words given now replace those of before. A checkpoint file begins a new run, as does another `hydra.run.dir`.
    """
    asked = [word for word in given if key(word) in (GOES_ON, AGAIN) and word.partition("=")[2] not in ("", "null")]
    if not asked or any(key(word) == "hydra.run.dir" for word in given):
        return given
    verb, value = key(asked[-1]), asked[-1].partition("=")[2].strip("'\"")
    folder = newest(verb) if value == LAST else Path(value).expanduser()
    if folder.is_file() and verb == GOES_ON:
        return given
    if not started(folder):
        accepted = f"{LAST}, or a .ckpt file" if verb == GOES_ON else f"or {LAST}"
        raise ValueError(f"{verb}={value}: no run there; give a run's folder, {accepted}")
    new = [word for word in given if key(word) not in (GOES_ON, AGAIN)]
    old = [
        word for word in before(folder) if key(word) not in {*OWN, *map(key, new)} and not key(word).startswith("hydra")
    ]
    if named := [word for word in old if "_target_" in word]:  # a folder may be another's
        raise ValueError(f"{verb}={value}: {named[0]} calls what it names; give that word again to go on with it")
    flags = [word for word in new if word.startswith("-")]
    new = [word for word in new if word not in flags]
    place = [f"hydra.run.dir={folder}", "hydra.output_subdir=null"] if verb == GOES_ON else []
    return [*flags, *old, *new, f"{verb}={folder}", *place]


def key(word: str) -> str:
    return word.split("=")[0].lstrip("+~")


def started(folder: Path) -> bool:
    return (folder / GIVEN).is_file() or (folder / "run.json").is_file()


def newest(verb: str) -> Path:
    """The run of `outputs/` that was started last."""
    runs = [file.parent.parent for file in Path("outputs").glob(f"*/*/{GIVEN}")]
    if not runs:
        raise ValueError(f"{verb}={LAST}: no run in outputs/; give a run's folder")
    return max(runs, key=lambda folder: (folder / GIVEN).stat().st_mtime)


def before(folder: Path) -> list[str]:
    """The words that a run was started with."""
    if record := read_json(folder / "run.json"):
        return record["overrides"]
    try:
        found = yaml.safe_load((folder / GIVEN).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        found = None
    if not isinstance(found, list):
        raise ValueError(f"{folder / GIVEN}: not the words of a run; it is cut off, or was changed")
    return found


@dataclass
class Before:
    """What the run in a folder had come to: `record` is its `run.json`, `changed` what is another word now, old and new."""

    record: dict
    changed: dict[str, tuple]
    known: int  # the last step of `metrics.csv`

    def wandb(self) -> dict[str, str]:
        """What names its run there, and the step before which all is there, if it is the same that would come again."""
        if "wandb" not in self.record:
            return {}
        return {"id": self.record["wandb"]["id"], "known": 0 if self.changed else self.known}


def going_on(cfg: DictConfig, folder: Path, a_step: int) -> Before | None:
    """The run that is there, when `cfg` goes on with it; `ValueError` when it does not, or other words are not confirmed.

    `a_step` is the number of samples that a step takes now.
    """
    if not (folder / "run.json").is_file():
        return None
    if cfg.resume is None or not (given := Path(cfg.resume).expanduser()).is_dir() or not given.samefile(folder):
        raise ValueError(f"{folder}: holds a run already; resume={folder} goes on with it")
    from sdft.runs.metrics_csv import NAME, read

    record = read_json(folder / "run.json")
    changed = changes(OmegaConf.to_container(read_config(folder)), OmegaConf.to_container(cfg))
    batch = record["batch"]
    if (was := batch["size"] * batch["gradient_accumulation_steps"] * batch["processes"]) != a_step and not changed:
        changed["samples of a step"] = (was, a_step)
    if changed and not cfg.allow_config_change:
        words = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
        raise ValueError(f"resume={folder}: {words}; add allow_config_change=true to go on like that")
    return Before(record, changed, max((int(row["step"]) for row in read(folder / NAME)[1]), default=0))


def changes(old: dict, new: dict) -> dict[str, tuple]:
    """Words that differ, old and new; of what follows from a top-level word only that."""
    one, other = flat(old), flat(new)
    found = {name: (one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)}
    found = {name: values for name, values in found.items() if name.split(".")[-1] not in FREE}
    return {name: values for name, values in found.items() if "." not in name or name.split(".")[-1] not in found}


def flat(node: dict, path: str = "") -> dict:
    found = {}
    for name, value in node.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found

"""Going on with a run: in its own folder, with its own words, as the same run on W&B."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from sdft.runs.files import read_config, read_json

LAST, RESUME, REPRODUCE = "last", "resume", "reproduce"
RESUME_OPTIONS = (RESUME, REPRODUCE, "allow_config_change")  # words of going on itself
RESULT_NEUTRAL_OPTIONS = {
    *RESUME_OPTIONS,
    "workers",
    "save_every",
    "checkpoints_total_limit",
}  # words that change no result
OVERRIDES_FILE = Path(".hydra", "overrides.yaml")


def restore_overrides(given: list[str]) -> list[str]:
    """A command line with the words of the run that it goes on with, or repeats: `resume=FOLDER`, `reproduce=last`.

    Words given now replace those of before. A checkpoint file begins a new run, as does another `hydra.run.dir`.
    """
    asked = [
        word
        for word in given
        if parse_override_key(word) in (RESUME, REPRODUCE) and word.partition("=")[2] not in ("", "null")
    ]
    if not asked or any(parse_override_key(word) == "hydra.run.dir" for word in given):
        return given
    verb, value = parse_override_key(asked[-1]), asked[-1].partition("=")[2].strip("'\"")
    folder = find_last_started_run(verb) if value == LAST else Path(value).expanduser()
    if folder.is_file() and verb == RESUME:
        return given
    if not has_started(folder):
        accepted = f"{LAST}, or a .ckpt file" if verb == RESUME else f"or {LAST}"
        raise ValueError(f"{verb}={value}: no run there; give a run's folder, {accepted}")
    new = [word for word in given if parse_override_key(word) not in (RESUME, REPRODUCE)]
    old = [
        word
        for word in read_overrides(folder)
        if parse_override_key(word) not in {*RESUME_OPTIONS, *map(parse_override_key, new)}
        and not parse_override_key(word).startswith("hydra")
    ]
    if named := [word for word in old if "_target_" in word]:  # a folder may be another's
        raise ValueError(f"{verb}={value}: {named[0]} calls what it names; give that word again to go on with it")
    flags = [word for word in new if word.startswith("-")]
    new = [word for word in new if word not in flags]
    place = [f"hydra.run.dir={folder}", "hydra.output_subdir=null"] if verb == RESUME else []
    return [*flags, *old, *new, f"{verb}={folder}", *place]


def parse_override_key(word: str) -> str:
    return word.split("=")[0].lstrip("+~")


def has_started(folder: Path) -> bool:
    return (folder / OVERRIDES_FILE).is_file() or (folder / "run.json").is_file()


def find_last_started_run(verb: str) -> Path:
    """The run of `outputs/` that was started last."""
    runs = [file.parent.parent for file in Path("outputs").glob(f"*/*/{OVERRIDES_FILE}")]
    if not runs:
        raise ValueError(f"{verb}={LAST}: no run in outputs/; give a run's folder")
    return max(runs, key=lambda folder: (folder / OVERRIDES_FILE).stat().st_mtime)


def read_overrides(folder: Path) -> list[str]:
    """The words that a run was started with."""
    if record := read_json(folder / "run.json"):
        return record["overrides"]
    try:
        found = yaml.safe_load((folder / OVERRIDES_FILE).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        found = None
    if not isinstance(found, list):
        raise ValueError(f"{folder / OVERRIDES_FILE}: not the words of a run; it is cut off, or was changed")
    return found


@dataclass
class PreviousRun:
    """What the run in a folder had come to: `record` is its `run.json`, `changed` what is another word now, old and new."""

    record: dict
    changed: dict[str, tuple]
    last_logged_step: int  # the last step of `metrics.csv`

    def wandb(self) -> dict[str, str]:
        """What names its run there, and the step before which all is there, if it is the same that would come again."""
        if "wandb" not in self.record:
            return {}
        return {"id": self.record["wandb"]["id"], "last_logged_step": 0 if self.changed else self.last_logged_step}


def load_previous_run(cfg: DictConfig, folder: Path, samples_per_step: int) -> PreviousRun | None:
    """The run that is there, when `cfg` goes on with it; `ValueError` when it does not, or other words are not confirmed.

    `samples_per_step` is the number of samples that a step takes now.
    """
    if not (folder / "run.json").is_file():
        return None
    if cfg.resume is None or not (given := Path(cfg.resume).expanduser()).is_dir() or not given.samefile(folder):
        raise ValueError(f"{folder}: holds a run already; resume={folder} goes on with it")
    from sdft.runs.metrics_csv import METRICS_FILE, read_metrics

    record = read_json(folder / "run.json")
    changed = diff_configs(OmegaConf.to_container(read_config(folder)), OmegaConf.to_container(cfg))
    batch = record["batch"]
    if (
        was := batch["size"] * batch["gradient_accumulation_steps"] * batch["processes"]
    ) != samples_per_step and not changed:
        changed["samples of a step"] = (was, samples_per_step)
    if changed and not cfg.allow_config_change:
        words = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
        raise ValueError(f"resume={folder}: {words}; add allow_config_change=true to go on like that")
    return PreviousRun(
        record, changed, max((int(row["step"]) for row in read_metrics(folder / METRICS_FILE)[1]), default=0)
    )


def diff_configs(old: dict, new: dict) -> dict[str, tuple]:
    """Words that differ, old and new; of what follows from a top-level word only that."""
    one, other = flatten_config(old), flatten_config(new)
    found = {name: (one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)}
    found = {name: values for name, values in found.items() if name.split(".")[-1] not in RESULT_NEUTRAL_OPTIONS}
    return {name: values for name, values in found.items() if "." not in name or name.split(".")[-1] not in found}


def flatten_config(node: dict, path: str = "") -> dict:
    found = {}
    for name, value in node.items():
        found |= flatten_config(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return found

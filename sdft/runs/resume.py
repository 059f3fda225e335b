"""Resume a run in its own folder, with its own options and W&B run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from sdft.options.quoting import format_for_shell, format_override, parse_text_value
from sdft.options.suggestions import flatten_config
from sdft.runs.files import atomic_write, read_yaml
from sdft.runs.links import check_links
from sdft.runs.metadata import RECORD_FILE, read_record
from sdft.runs.metrics_file import METRICS_FILE, find_last_logged_step
from sdft.runs.newest_run import report_default_run
from sdft.runs.run_config import read_stored_config
from sdft.runs.stored_options import check_stored_overrides
from sdft.runs.terminal import print_text

LAST, RESUME, REPRODUCE = "last", "resume", "reproduce"
RESUME_OPTIONS = (RESUME, REPRODUCE, "allow_config_change", "allow_data_change")
INPUT_OPTIONS = {
    *("data", "caption_template", "instance_prompt", "model", "seed"),
    *("prior", "class_prompt", "class_path", "num_class_images"),
}  # options that choose images, captions or base weights
RESULT_NEUTRAL_OPTIONS = {
    *RESUME_OPTIONS,
    "workers",
    "verify",
    "save_every",
    "checkpoints_total_limit",
}  # options that do not change the results
OVERRIDES_FILE = Path(".hydra", "overrides.yaml")


def restore_overrides(overrides: list[str]) -> list[str]:
    """Expand `resume=FOLDER`, `reproduce=last`, … to the overrides of that run, followed by the new ones, which win.

    A checkpoint file, or `hydra.run.dir`, starts a new run: then `overrides` are returned as they are.
    """
    requests = [
        override
        for override in overrides
        if parse_override_key(override) in (RESUME, REPRODUCE) and override.partition("=")[2] not in ("", "null")
    ]
    if not requests or any(parse_override_key(override) == "hydra.run.dir" for override in overrides):
        return overrides
    option, value = parse_override_key(requests[-1]), parse_text_value(requests[-1])
    folder = find_last_started_run(option) if value == LAST else Path(value).expanduser()
    if folder.is_file() and option == RESUME:
        return overrides
    if not has_started(folder):
        accepted = f"{LAST}, or a .ckpt file" if option == RESUME else f"or {LAST}"
        raise ValueError(f"{option}={value}: not a run folder; give a run folder, {accepted}")
    check_links(folder)
    new = [override for override in overrides if parse_override_key(override) not in (RESUME, REPRODUCE)]
    old = [
        override
        for override in read_overrides(folder)
        if parse_override_key(override) not in {*RESUME_OPTIONS, *map(parse_override_key, new)}
    ]
    check_stored_overrides(old, f"{option}={value}")  # the folder may be from someone else
    output = [format_override("hydra.run.dir", folder), "hydra.output_subdir=null"] if option == RESUME else []
    return [*old, *new, format_override(option, folder), *output]


def parse_override_key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def has_started(folder: Path) -> bool:
    return (folder / OVERRIDES_FILE).is_file() or (folder / RECORD_FILE).is_file()


def find_last_started_run(option: str) -> Path:
    """Folder of the run in `outputs/` that started last."""
    runs = [file.parent.parent for file in Path("outputs").glob(f"*/*/{OVERRIDES_FILE}")]
    if not runs:
        raise ValueError(f"{option}={LAST}: no run in outputs/; give a run folder")
    last = max(runs, key=lambda folder: (folder / OVERRIDES_FILE).stat().st_mtime)
    report_default_run(last, "which started last")
    return last


def describe_resumption(folder: Path, sweep: str | None) -> str:
    """How to continue a run; a job is continued by its sweep, which also starts the other jobs."""
    return (
        "repeat the command of the sweep to resume it" if sweep else f"resume with {format_for_shell('resume', folder)}"
    )


def print_stop(cause: str, folder: Path, sweep: str | None) -> None:
    print_text(f"stopped    by {cause}; {describe_resumption(folder, sweep)}", flush=True)


@contextmanager
def store_overrides(folder: Path, overrides: Sequence[str], has_started: Callable[[], bool]) -> Iterator[None]:
    """Store the overrides of a start for a later resume; if the body raises before the run has started, restore the old ones.

    The caller holds the folder's lock.
    """
    file = folder / OVERRIDES_FILE
    before, made = file.read_bytes() if file.is_file() else None, not file.parent.is_dir()
    with atomic_write(file) as partial:
        partial.write_text(yaml.safe_dump(list(overrides), allow_unicode=True), encoding="utf-8")
    try:
        yield
    except BaseException:
        if not has_started():
            if before is not None:
                file.write_bytes(before)
            else:
                file.unlink(missing_ok=True)
                if made:
                    with suppress(OSError):
                        file.parent.rmdir()
        raise


def read_overrides(folder: Path) -> list[str]:
    """Overrides that a run was started with; before `run.json` exists, those of `store_overrides`."""
    if (folder / RECORD_FILE).is_file():
        return read_record(folder, "overrides")["overrides"]
    return read_yaml(folder / OVERRIDES_FILE, [str])


@dataclass
class PreviousRun:
    """State of the run to resume: `record` is its `run.json`, `changed` the changed options as {name: (old, new)}."""

    record: dict
    changed: dict[str, tuple]
    last_logged_step: int  # last step in `metrics.csv`

    def has_changed_inputs(self) -> bool:
        """Whether an option was changed that chooses images, captions or base weights."""
        return any(name.partition(".")[0] in INPUT_OPTIONS for name in self.changed)

    def build_wandb_options(self) -> dict[str, str]:
        """Logger options that continue its W&B run; steps before `last_logged_step` are skipped if nothing has changed."""
        if "wandb" not in self.record:
            return {}
        return {"id": self.record["wandb"]["id"], "last_logged_step": 0 if self.changed else self.last_logged_step}


def load_previous_run(cfg: DictConfig, folder: Path, samples_per_step: int) -> PreviousRun | None:
    """Load the run in `folder`, or return None if there is none.

    Raises `ValueError` if `cfg` does not resume it, or if options have changed without `allow_config_change`.
    `samples_per_step` is the number of samples that a step takes now.
    """
    if not (folder / RECORD_FILE).is_file():
        return None
    if cfg.resume is None or not (path := Path(cfg.resume).expanduser()).is_dir() or not path.samefile(folder):
        raise ValueError(f"{folder}: already contains a run; use {format_for_shell('resume', folder)} to continue it")
    record = read_record(folder, "batch")
    changed = diff_configs(read_stored_config(folder), OmegaConf.to_container(cfg))
    batch = record["batch"]
    previous_samples = batch["size"] * batch["gradient_accumulation_steps"] * batch["processes"]
    if previous_samples != samples_per_step and not changed:
        changed["samples of a step"] = (previous_samples, samples_per_step)
    if changed and not cfg.allow_config_change:
        changes = ", ".join(f"{name} from {old} to {new}" for name, (old, new) in changed.items())
        raise ValueError(f"resume={folder}: changes {changes}; add allow_config_change=true to allow this")
    return PreviousRun(record, changed, find_last_logged_step(folder / METRICS_FILE))


def diff_configs(old: dict, new: dict) -> dict[str, tuple]:
    """Changed options as {name: (old, new)}; values that follow a changed top-level option are left out."""
    old, new = flatten_config(old), flatten_config(new)
    changed = {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}
    changed = {name: values for name, values in changed.items() if name.split(".")[-1] not in RESULT_NEUTRAL_OPTIONS}
    return {n: values for n, values in changed.items() if not any(n.endswith(f".{other}") for other in changed)}

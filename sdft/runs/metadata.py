"""Record of a run in its folder: command, config, code and library versions, and final state; its writer and its reader."""

import json
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf

from sdft.distributed import rank
from sdft.runs.files import atomic_write, check_format_version, check_structure, read_json
from sdft.runs.invocation import Invocation
from sdft.runs.lock import Lock
from sdft.runs.stored_options import resolve_overrides

LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "peft", "hydra-core", "open-clip-torch", "wandb")

RECORD_FILE = "run.json"
RUN_FORMAT = 1  # of run folders: raised when an older version could misread them, or this one older folders
STATES = ("running", "trained", "finished", "failed", "stopped")
NUMBER = (int, float)
RECORD_STRUCTURE = {
    "format": int,
    "state": str,
    "command?": [str],
    "overrides?": [str],
    "choices?": {"*": (str, list, type(None))},
    "options?": {"*": (str, int, float, bool, list, type(None))},
    "started?": str,
    "ended?": str,
    "resumed?": [{"changed?": dict, "step?": int}],
    "batch?": {"size": int, "gradient_accumulation_steps": int, "processes": int},
    "trainable?": {"*": int},
    "digests?": {"*": str},
    "clip_skip?": {"webui": int, "diffusers": int},
    "files?": {"*": {"name": str, "sha256": str}},
    "versions?": {"*": str},
    "warnings?": [str],
    "wandb?": {"id": str, "project": str, "name": str, "mode?": (str, type(None))},
    "best?": {"step": int, "metric": str, "value": (*NUMBER, type(None))},
    "last?": {"memory_gb?": (*NUMBER, type(None))},
    "validation_loss?": [(*NUMBER, type(None))],
    **dict.fromkeys(("steps?", "images?", "resolution?", "num_class_images?", "stopped_at?"), int),
    **dict.fromkeys(("seconds?", "epochs?", "result_mb?"), NUMBER),
    **dict.fromkeys(("device?", "base?", "prediction_type?", "result_digest?"), str),
    **dict.fromkeys(("commit?", "architecture?", "pipeline?", "empty_caption?"), (str, type(None))),
    "seconds_per_step?": (*NUMBER, type(None)),
}

DATA_STRUCTURE = {
    **dict.fromkeys(("images?", "captions?", "unique captions?"), int),
    "frequent words?": {"*": int},
    "frequent tags?": {"*": int},
    "words of every caption?": [str],
    "sides?": [int],
    "longest caption?": {"text": str},
    "used?": {"*": int},
    "notes?": {"*": [str]},
    "not used?": {"*": [str]},
}


def read_record(folder: Path, *required: str) -> dict:
    """The content of `run.json`, with the keys `required`.

    Raises `ValueError` if the folder has none, for another format version, and for a damaged or edited file.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        raise ValueError(f"run={folder}: not a run folder (no {RECORD_FILE}); give a run folder")
    record = read_json(file)
    check_format_version(record.get("format"), RUN_FORMAT, file)
    check_structure(record, RECORD_STRUCTURE, str(file))
    if record["state"] not in STATES:
        raise ValueError(f"{file}: unknown state {record['state'][:40]!r}; the file was edited")
    check_structure(record, dict.fromkeys(required, object), str(file))
    return record


def read_data_report(folder: Path) -> dict:
    """The content of `data.json`, empty if there is none; `ValueError` for an edited file."""
    return read_json(folder / "data.json", DATA_STRUCTURE)


def read_state(folder: Path) -> str | None:
    """The state of the run in a folder, None if it has not started."""
    return read_record(folder)["state"] if (folder / RECORD_FILE).is_file() else None


class RunRecord:
    """`config.yaml` (resolved) and `run.json`, written at the start of the run; `run.json` again at its end."""

    def __init__(self, folder: Path):
        self.folder, self.metadata = folder, {}

    def start(self, plan: dict, cfg, invocation: Invocation, previous: dict | None = None, **resume_info) -> None:
        """Write both files. A resumed run passes its `previous` metadata, and `resume_info` to append to `resumed`."""
        with atomic_write(self.folder / "config.yaml") as partial:
            OmegaConf.save(cfg, partial)
        previous = previous or {}
        resume_entry = {"when": format_now(), "commit_before": previous.get("commit")} | resume_info
        self.metadata = {
            "format": RUN_FORMAT,
            "command": list(invocation.command),
            "overrides": resolve_overrides(invocation.overrides, cfg, invocation.choices),
            "choices": {group: names for group, names in invocation.choices.items() if "/" not in group},
            "started": previous.get("started", format_now()),
            "resumed": [
                *previous.get("resumed", []),
                *([resume_entry] if previous else []),
            ],
            "state": "running",
            "commit": read_commit(self.folder / "changes.diff"),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in LIBRARIES},
            **plan,
        }
        self.write()

    def end(self, state: str, **facts) -> None:
        self.metadata |= {"state": state, "ended": format_now(), **facts}
        if rank() == 0:
            self.write()

    @contextmanager
    def end_on_error(self) -> Iterator[None]:
        """If the body raises while the run is running, record that it failed, or was stopped by Ctrl-C or a signal."""
        try:
            yield
        except BaseException as error:
            if self.metadata.get("state") == "running":
                self.end("stopped" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed")
            raise

    def write(self) -> None:
        with atomic_write(self.folder / RECORD_FILE) as file:
            file.write_text(json.dumps(self.metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def format_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def format_command_line(command: list[str]) -> str:
    """The command of a `run.json` as typed in a shell: `python train.py …` or `sdft train …`."""
    return shlex.join([*(["python"] if command[0].endswith(".py") else []), *command])


def mark_failed(folder: Path, status: int) -> int:
    """Return `status`; if it is an error, set the state of an unfinished run to failed, unless another start holds its lock."""
    if status and (folder / RECORD_FILE).is_file():
        with suppress(ValueError), Lock(folder, "a run"):
            record = RunRecord(folder)
            record.metadata = read_record(folder)
            if record.metadata["state"] in ("running", "trained"):
                record.metadata["state"] = "failed"
                record.write()
    return status


def read_commit(changes: Path) -> str | None:
    """Commit of this checkout, or None outside one. Uncommitted changes add a `+` and are written to the file `changes`."""
    package = Path(__file__).parent.parent
    git = ["git", "-C", str(package.parent)]
    options = {"capture_output": True, "timeout": 5}
    try:
        if package.parent.name == "site-packages":
            return None  # an installed package may lie in the checkout of another project
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], text=True, **options)
        diff = subprocess.run([*git, "diff", "HEAD", "--", "."], **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    if diff.stdout:
        changes.write_bytes(diff.stdout)
    return head.stdout.strip() + "+" * bool(diff.stdout)

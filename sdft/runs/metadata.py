"""The run folder's own account: what ran, with what, and how it ended."""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf

from sdft.distributed import rank
from sdft.runs.files import atomic_write, read_json

LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "peft", "hydra-core", "open-clip-torch", "wandb")


class RunRecord:
    """`config.yaml`, resolved, and `run.json`, written when the run starts and again when it ends."""

    def __init__(self, folder: Path):
        self.folder, self.metadata = folder, {}

    def start(self, plan: dict, cfg, overrides: list[str], before: dict | None = None, **resumed) -> None:
        """`before` is what it said when the run was here last, and `resumed` how it goes on."""
        with atomic_write(self.folder / "config.yaml") as partial:
            OmegaConf.save(cfg, partial)
        before = before or {}
        came = {"when": format_now(), "commit_before": before.get("commit")}
        self.metadata = {
            "command": get_command_line(),
            "overrides": overrides,
            "started": before.get("started", format_now()),
            "resumed": [
                *before.get("resumed", []),
                *([came | resumed] if before else []),
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

    def write(self) -> None:
        with atomic_write(self.folder / "run.json") as file:
            file.write_text(json.dumps(self.metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def format_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def mark_failed(folder: Path, status: int) -> int:
    """The same status; a run that several processes left unfinished has failed."""
    file = folder / "run.json"
    if status and (facts := read_json(file)).get("state") in ("running", "trained"):
        with atomic_write(file) as partial:
            failed = json.dumps(facts | {"state": "failed"}, indent=2, ensure_ascii=False)
            partial.write_text(failed + "\n", encoding="utf-8")
    return status


def get_command_line() -> list[str]:
    """The command line of this run, without the folder of the program."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def read_commit(changes: Path) -> str | None:
    """The commit of this checkout, `+` when it has changes, which are then written to a file; None outside one."""
    package = Path(__file__).parent.parent
    git = ["git", "-C", str(package.parent)]
    told = {"capture_output": True, "timeout": 5}
    try:
        if package.parent.name == "site-packages":
            return None  # installed; whatever checkout it lies in is another project's
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], text=True, **told)
        diff = subprocess.run([*git, "diff", "HEAD", "--", "."], **told)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    if diff.stdout:
        changes.write_bytes(diff.stdout)
    return head.stdout.strip() + "+" * bool(diff.stdout)

"""The run folder's own account: what ran, with what, and how it ended."""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf

from sdft.files import whole
from sdft.processes import rank

LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "peft", "hydra-core", "open-clip-torch", "wandb")


class Record:
    """`config.yaml`, resolved, and `run.json`, written when the run starts and again when it ends."""

    def __init__(self, folder: Path):
        self.folder, self.facts = folder, {}

    def start(self, plan: dict, cfg) -> None:
        OmegaConf.save(cfg, self.folder / "config.yaml")
        self.facts = {
            "command": command(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "state": "running",
            "commit": commit(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in LIBRARIES},
            **plan,
        }
        self.write()

    def end(self, state: str, **facts) -> None:
        self.facts |= {"state": state, **facts}
        if rank() == 0:
            self.write()

    def write(self) -> None:
        with whole(self.folder / "run.json") as file:
            file.write_text(json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def failed_at(folder: Path, status: int) -> int:
    """The same status; a run that several processes left unfinished has failed."""
    file = folder / "run.json"
    if (
        status
        and file.is_file()
        and (told := json.loads(file.read_text(encoding="utf-8")))["state"] in ("running", "trained")
    ):
        with whole(file) as partial:
            partial.write_text(
                json.dumps(told | {"state": "failed"}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
    return status


def command() -> list[str]:
    """The command line of this run, without the folder of the program."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def commit() -> str | None:
    """The commit of this checkout, `+` when it has changes; None outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + "+" * bool(dirty.stdout.strip()) if head.returncode == 0 else None

"""Loggers besides `metrics.csv`. None of them prompts the user or requires the network."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from sdft.runs.files import check_name

WANDB_NAME_OPTIONS = {"project": "logger.project", "name": "name", "group": "logger.group"}
MAX_WANDB_NAME, MAX_WANDB_TAG = 128, 64  # characters
WANDB_PROJECT_CHARACTERS = "/\\#?%:"  # that a project name cannot contain


def check_names(cfg: DictConfig) -> None:
    """`ValueError` unless `name` can name folders and files, and W&B, if it is the logger, accepts the names it is given."""
    if not re.fullmatch(r"[\w+-][\w .+-]*", str(cfg.name)):
        raise ValueError(f"name={cfg.name}: use letters, digits, spaces and . _ + - only")
    check_name("name", str(cfg.name))
    if is_wandb_logger(cfg.logger):
        check_wandb_names(cfg.logger)


def is_wandb_logger(node: Mapping | None) -> bool:
    """Whether the config node of a logger builds one of W&B."""
    return bool(node) and "wandb" in str(node.get("_target_"))


def check_wandb_names(options: Mapping) -> None:
    """`ValueError` for names that W&B refuses, some of them only when a run that was logged offline is uploaded."""
    for key, option in WANDB_NAME_OPTIONS.items():
        if len(value := options.get(key) or "") > MAX_WANDB_NAME:
            raise ValueError(
                f"{option}={value[:40]}…: {len(value)} characters; W&B accepts {MAX_WANDB_NAME}; shorten it or use logger=none"
            )
    project = options.get("project") or ""
    if not project.strip() or set(project) & set(WANDB_PROJECT_CHARACTERS) or not project.isprintable():
        characters = " ".join(WANDB_PROJECT_CHARACTERS)
        raise ValueError(f"logger.project={project!r}: refused by W&B; choose a name without {characters}")
    for tag in options.get("tags") or ():
        if not 0 < len(tag) <= MAX_WANDB_TAG:
            raise ValueError(f"tags: {tag[:40]!r} has {len(tag)} characters; W&B accepts 1 to {MAX_WANDB_TAG}")


def build_wandb_logger(
    folder: str | None,
    name: str,
    project: str = "sdft",
    group: str | None = None,
    tags: list[str] = (),
    mode: str | None = None,
    id: str | None = None,
    job_type: str | None = None,
    last_logged_step: int = 0,
):
    """Weights & Biases logger: online when logged in, else offline in the run folder (upload later: `wandb sync`).

    `id` resumes a W&B run that has logged all steps before `last_logged_step`.
    """
    check_wandb_names({"name": name, "project": project, "group": group, "tags": tags})
    from wandb import Settings

    from sdft.training.wandb_logger import FINISH_TIMEOUT, START_TIMEOUT, SafeWandbLogger

    mode = mode or os.environ.get("WANDB_MODE") or ("online" if is_logged_in() else "offline")
    if mode not in ("online", "offline", "disabled"):
        raise ValueError(f"logger.mode={mode}: choose online, offline or disabled")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no crash reports to W&B
    timeouts = {"init_timeout": START_TIMEOUT, "finish_timeout": FINISH_TIMEOUT, "finish_timeout_raises": True}
    privacy = {"disable_git": True, "disable_code": True, "x_save_requirements": False}  # see run.json instead
    settings = Settings(silent=True, console="off", mode=mode, reinit="create_new", **timeouts, **privacy)
    run = {"group": group, "job_type": job_type, "tags": list(tags), "id": id, "resume": "allow"}
    folder = os.path.abspath(folder)  # W&B's service process may have another working directory
    return SafeWandbLogger(last_logged_step, settings, name=name, project=project, dir=folder, **run)


def is_logged_in() -> bool:
    """Whether the environment or the netrc file has a key; wandb's own check would prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc
    from urllib.parse import urlparse

    from wandb import Settings

    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    base_url = os.environ.get("WANDB_BASE_URL")
    urls = [base_url] if base_url else [Settings().base_url, "https://api.wandb.ai"]  # the default and its former value
    try:
        return file.is_file() and any(netrc(file).authenticators(urlparse(url).hostname) for url in urls)
    except NetrcParseError:
        return False


def build_tensorboard_logger(folder: str | None):
    if find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard: not installed; pip install tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="", version="tensorboard")

"""Dashboards beside `metrics.csv`. None of them asks a question or needs the network."""

import os
from importlib.util import find_spec
from pathlib import Path


def wandb(
    folder: str,
    name: str,
    project: str = "sdft",
    group: str | None = None,
    tags: list[str] = (),
    mode: str | None = None,
    id: str | None = None,
    job_type: str | None = None,
):
    """Weights & Biases: online with a login, else offline in the run folder (later: `wandb sync`); `id` goes on with a run."""
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Settings

    mode = mode or os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    if mode not in ("online", "offline", "disabled"):
        raise ValueError(f"logger.mode={mode}: choose online, offline or disabled")
    settings = Settings(silent=True, console="off", mode=mode)
    run = {"group": group, "job_type": job_type, "tags": list(tags)} | ({"id": id, "resume": "allow"} if id else {})
    folder = os.path.abspath(folder)  # W&B's own process may have started elsewhere
    logger = WandbLogger(name=name, project=project, save_dir=folder, settings=settings, **run)
    logger._wandb_init.pop("anonymous", None)  # Lightning passes what wandb no longer takes, and wandb warns
    return logger


def logged_in() -> bool:
    """A key in the environment or in the netrc file; asking wandb itself would prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc
    from urllib.parse import urlparse

    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return file.is_file() and netrc(file).authenticators(server) is not None
    except NetrcParseError:
        return False


def tensorboard(folder: str):
    if find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard: not installed; pip install tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="", version="tensorboard")

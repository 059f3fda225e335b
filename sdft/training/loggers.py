"""Dashboards beside `metrics.csv`. None of them asks a question or needs the network."""

import os
from importlib.util import find_spec
from pathlib import Path


def build_wandb_logger(
    folder: str,
    name: str,
    project: str = "sdft",
    group: str | None = None,
    tags: list[str] = (),
    mode: str | None = None,
    id: str | None = None,
    job_type: str | None = None,
    last_logged_step: int = 0,
):
    """Weights & Biases: online with a login, else offline in the run folder (later: `wandb sync`); `id` goes on with a run
    that has logged all before step `last_logged_step`."""
    from wandb import Settings

    from sdft.training.wandb_logger import FINISH_TIMEOUT, START_TIMEOUT, SafeWandbLogger

    mode = mode or os.environ.get("WANDB_MODE") or ("online" if is_logged_in() else "offline")
    if mode not in ("online", "offline", "disabled"):
        raise ValueError(f"logger.mode={mode}: choose online, offline or disabled")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own crashes are not reported to its makers
    bounds = {"init_timeout": START_TIMEOUT, "finish_timeout": FINISH_TIMEOUT, "finish_timeout_raises": True}
    untold = {"disable_git": True, "disable_code": True, "x_save_requirements": False}  # run.json has what is needed
    settings = Settings(silent=True, console="off", mode=mode, **bounds, **untold)
    run = {"group": group, "job_type": job_type, "tags": list(tags)} | ({"id": id, "resume": "allow"} if id else {})
    folder = os.path.abspath(folder)  # W&B's own process may have started elsewhere
    return SafeWandbLogger(last_logged_step, name=name, project=project, save_dir=folder, settings=settings, **run)


def is_logged_in() -> bool:
    """A key in the environment or in the netrc file; asking wandb itself would prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc
    from urllib.parse import urlparse

    from wandb import Settings

    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    own = os.environ.get("WANDB_BASE_URL")  # wandb's default has moved; keys of before stay valid
    servers = [urlparse(url).hostname for url in ([own] if own else [Settings().base_url, "https://api.wandb.ai"])]
    try:
        return file.is_file() and any(netrc(file).authenticators(server) for server in servers)
    except NetrcParseError:
        return False


def build_tensorboard_logger(folder: str):
    if find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard: not installed; pip install tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="", version="tensorboard")

"""The model that an app works on: a run's result, or a base with LoRA files in it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdft.adapters import wear
from sdft.asked import config_of, newest_run
from sdft.config import check, typed
from sdft.model import StableDiffusion
from sdft.strategy import alone

WORDS = {"run": str | None, "adapters": list[str], "weights": list[float], "accelerator": str}


@dataclass
class Opened:
    """`cfg` is the run's, or the app's own; `adapters` are the files in the model, with their weights."""

    model: StableDiffusion
    cfg: DictConfig
    run: Path | None
    adapters: list[Path]
    weights: list[float]


def chosen(asked: DictConfig) -> tuple[DictConfig, Path | None]:
    """The config that names the model, and the run it is from; without `model=…` or `run=…` the newest finished run."""
    typed(asked, {key: hint for key, hint in WORDS.items() if asked.get(key) is not None})
    given = asked.get("adapters") is not None or asked.get("model") is not None
    if given and asked.get("run"):
        raise ValueError(f"run={asked.run}: brings its model; give it, or model=… adapters=[…]")
    if not given:
        run = Path(asked.run).expanduser() if asked.get("run") else newest_run()
        cfg = config_of(run)
        check(cfg)
        return cfg, run
    if not OmegaConf.is_dict(asked.get("model")):
        raise ValueError(f"adapters={list(asked.adapters)}: give model=… with them, such as model=sd15")
    return asked, None


def open_model(asked: DictConfig) -> Opened:
    """On the device of `asked.accelerator`, frozen, in the precision of `asked.precision` when there is one."""
    cfg, run = chosen(asked)
    files = [Path(str(file)).expanduser() for file in asked.get("adapters") or []]
    weights = list(asked.weights) if asked.get("weights") is not None else [1.0] * max(len(files), 1 if run else 0)
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    if run:
        method = instantiate(cfg.method)
        if not (run / method.result).is_dir():
            raise ValueError(f"run={run}: it has no {method.result}/ yet; it did not finish")
        if method.result == "adapter":
            files = [run]
        elif weights != [1.0]:
            raise ValueError(f"weights={weights}: only an adapter has a strength, and {run} made its {method.result}/")
        else:
            method.load(model, run / method.result)
    wear(model, files, weights if files else [])
    model.to(alone(asked.get("accelerator", "auto"))).requires_grad_(False).eval()
    if asked.get("precision"):
        model.compute = instantiate(asked.precision).dtype
    return Opened(model, cfg, run, files, weights)

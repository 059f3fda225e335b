"""The model that an app works on: a run's result or checkpoint, or a base with LoRA files in it."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdft.config import check, typed
from sdft.evaluation.request import config_of, newest_run
from sdft.evaluation.variants import BEST, chosen, load_checkpoint, result_in
from sdft.lora.file import lora_file, one_each
from sdft.lora.scaling import wear
from sdft.methods.base import Method
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.hashing import of_weights
from sdft.training.strategy import ACCELERATORS, alone

WORDS = {
    "run": str | None,
    "adapters": list[str],
    "weights": list[float],
    "accelerator": str,
    "checkpoint": str | None,
}
MOST = 400  # letters of a refusal, which may tell of every layer
RESULT = "result"  # the checkpoint that is none: what the run left at its end


@dataclass
class Named:
    """What the words name, which is there, before anything is loaded.

    `adapters` are LoRA files, a run's own among them; `result` is what a run's method loads instead: a folder, or a checkpoint.
    """

    cfg: DictConfig
    run: Path | None = None
    method: Method | None = None
    result: Path | None = None
    adapters: list[Path] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def checkpoint(self) -> bool:
        """Whether the result is one."""
        return self.result is not None and self.result.suffix == ".ckpt"

    @property
    def scalable(self) -> bool:
        """Whether it has a strength other than all and nothing."""
        pissa = getattr(self.method, "init_lora_weights", None) == "pissa"  # its checkpoints change the base's weights, too
        adapted = self.method is not None and self.method.result == "adapter"
        return bool(self.adapters) or (self.checkpoint and adapted and not pissa)


@dataclass
class Opened:
    """`cfg` is the run's, or the app's own; `adapters` are the files in the model, with their weights and their `names` inside.

    `digest` is that of all weights but adapters', if it was asked for.
    """

    model: StableDiffusion
    cfg: DictConfig
    run: Path | None
    adapters: list[Path]
    weights: list[float]
    names: list[str] = field(default_factory=list)
    digest: str | None = None


def config(asked: DictConfig) -> tuple[DictConfig, Path | None]:
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
    if asked.get("checkpoint") is not None:
        raise ValueError(f"checkpoint={asked.checkpoint}: is one of a run; give run=… with it")
    if not OmegaConf.is_dict(asked.get("model")):
        what = f"adapters={list(asked.adapters)}" if asked.get("adapters") is not None else f"model={asked.model}"
        raise ValueError(f"{what}: give model=NAME with a model in it, such as model=sd15")
    return asked, None


def named(asked: DictConfig, bare: bool = False) -> Named:
    """`ValueError` for files that are not there, and for weights that are not as many; `bare` asks for none of them."""
    if asked.get("accelerator") not in (None, *ACCELERATORS):
        raise ValueError(f"accelerator={asked.accelerator}: choose one of {', '.join(ACCELERATORS)}")
    if asked.get("accelerator") == "gpu" and not torch.cuda.is_available():
        raise ValueError("accelerator=gpu: torch finds none on this machine; choose auto or cpu")
    cfg, run = config(asked)
    if bare:
        return Named(cfg, run)
    weights = list(asked.weights) if asked.get("weights") is not None else None
    if run is None:
        with called("adapters"):
            files = [lora_file(Path(str(file)).expanduser()) for file in asked.get("adapters") or []]
        found = Named(cfg, adapters=files)
    else:
        method = instantiate(cfg.method)
        result = result_of(run, method, asked.get("checkpoint"))
        if result.is_dir() and method.result == "adapter":
            with called("run"):
                found = Named(cfg, run, method, adapters=[lora_file(result)])
        else:
            found = Named(cfg, run, method, result)
    count = max(len(found.adapters), int(found.scalable))
    if weights is not None and run and not count:
        raise ValueError(f"weights={weights}: {found.result} has no strength, which only an adapter has")
    found.weights = [1.0] * count if weights is None else one_each(weights, count)
    return found


def result_of(run: Path, method: Method, checkpoint: str | None) -> Path:
    """The folder of the run's result, or of the best on the way, or the file of its checkpoint at a step."""
    if checkpoint in (None, RESULT):
        return result_in(run, method)
    if checkpoint == BEST:
        if not (run / BEST).is_dir():
            raise ValueError(f"checkpoint=best: {run} has none; train with evaluate_every=N checkpoint_metric=SCORE")
        return run / BEST
    if not str(checkpoint).isdecimal():
        raise ValueError(f"checkpoint={checkpoint}: choose a step, best, or result")
    try:
        return chosen(run, [int(checkpoint)])[0][1]
    except ValueError as error:
        there = str(error).partition("; ")[2]
        raise ValueError(f"checkpoint={checkpoint}: choose a step, best, or result; {there}") from None


def open_model(asked: DictConfig, bare: bool = False, digested: bool = False) -> Opened:
    """On the device of `asked.accelerator`, frozen, in the precision of `asked.precision` when there is one.

    `bare` is the base alone, without what was learned.
    """
    found, names = named(asked, bare), []
    torch.manual_seed(0)
    model = instantiate(found.cfg.model)
    if found.result and not found.checkpoint:
        found.method.load(model, found.result)
    adapted = found.checkpoint and found.method.result == "adapter"
    if found.checkpoint and not adapted:
        load_checkpoint(model, found.method, found.result, found.cfg.get("seed", 0))
    digest = of_weights(model) if digested else None
    if adapted:
        load_checkpoint(model, found.method, found.result, found.cfg.get("seed", 0))
        scale(model, found.weights)
        names = ["default"]
    else:
        with called("run" if found.run else "adapters"):
            names = wear(model, found.adapters, found.weights if found.adapters else [])
    model.to(alone(asked.get("accelerator") or "auto")).requires_grad_(False).eval()
    if asked.get("precision"):
        precision = instantiate(asked.precision)
        precision.apply()
        model.compute = precision.dtype
    return Opened(model, found.cfg, found.run, found.adapters, found.weights, names, digest)


def scale(model: StableDiffusion, weights: list[float]) -> None:
    """The one adapter of a checkpoint at its weight."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        if weights and weights[0] != 1:
            layer.scale_layer(weights[0])


@contextmanager
def called(word: str):
    """Refusals that name the word which was given."""
    try:
        yield
    except ValueError as error:
        told = str(error).replace("adapter=", f"{word}=", 1)
        raise ValueError(told if len(told) <= MOST else f"{told[:MOST]}…") from None

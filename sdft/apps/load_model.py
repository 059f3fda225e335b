"""The model that an app works on: a run's result or checkpoint, or a base with LoRA files in it."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdft.config import check_config, check_option_types
from sdft.evaluation.request import find_newest_run, read_run_config
from sdft.evaluation.variants import BEST, find_result_folder, load_checkpoint_weights, select_checkpoints
from sdft.lora.file import check_weight_count, find_lora_file
from sdft.lora.scaling import load_adapters
from sdft.methods.base import Method
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.hashing import hash_weights
from sdft.training.strategy import ACCELERATORS, select_device

OPTION_TYPES = {
    "run": str | None,
    "adapters": list[str],
    "weights": list[float],
    "accelerator": str,
    "checkpoint": str | None,
}
MAX_ERROR_LENGTH = 400  # letters of a refusal, which may tell of every layer
FINAL_RESULT = "result"  # the checkpoint that is none: what the run left at its end


@dataclass
class ModelRequest:
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
    def is_checkpoint(self) -> bool:
        """Whether the result is one."""
        return self.result is not None and self.result.suffix == ".ckpt"

    @property
    def supports_scaling(self) -> bool:
        """Whether it has a strength other than all and nothing."""
        pissa = (
            getattr(self.method, "init_lora_weights", None) == "pissa"
        )  # its checkpoints change the base's weights, too
        adapted = self.method is not None and self.method.output_kind == "adapter"
        return bool(self.adapters) or (self.is_checkpoint and adapted and not pissa)


@dataclass
class LoadedModel:
    """`cfg` is the run's, or the app's own; `adapters` are the files in the model, with their weights and their `names` inside.

    `digest` is that of all weights but adapters', if it was asked for.
    """

    model: StableDiffusion
    cfg: DictConfig
    run: Path | None
    adapters: list[Path]
    weights: list[float]
    adapter_names: list[str] = field(default_factory=list)
    digest: str | None = None


def resolve_model_config(asked: DictConfig) -> tuple[DictConfig, Path | None]:
    """The config that names the model, and the run it is from; without `model=…` or `run=…` the newest finished run."""
    check_option_types(asked, {key: hint for key, hint in OPTION_TYPES.items() if asked.get(key) is not None})
    given = asked.get("adapters") is not None or asked.get("model") is not None
    if given and asked.get("run"):
        raise ValueError(f"run={asked.run}: brings its model; give it, or model=… adapters=[…]")
    if not given:
        run = Path(asked.run).expanduser() if asked.get("run") else find_newest_run()
        cfg = read_run_config(run)
        check_config(cfg)
        return cfg, run
    if asked.get("checkpoint") is not None:
        raise ValueError(f"checkpoint={asked.checkpoint}: is one of a run; give run=… with it")
    if not OmegaConf.is_dict(asked.get("model")):
        what = f"adapters={list(asked.adapters)}" if asked.get("adapters") is not None else f"model={asked.model}"
        raise ValueError(f"{what}: give model=NAME with a model in it, such as model=sd15")
    return asked, None


def resolve_model(asked: DictConfig, base_only: bool = False) -> ModelRequest:
    """`ValueError` for files that are not there, and for weights that are not as many; `base_only` asks for none of them."""
    if asked.get("accelerator") not in (None, *ACCELERATORS):
        raise ValueError(f"accelerator={asked.accelerator}: choose one of {', '.join(ACCELERATORS)}")
    if asked.get("accelerator") == "gpu" and not torch.cuda.is_available():
        raise ValueError("accelerator=gpu: torch finds none on this machine; choose auto or cpu")
    cfg, run = resolve_model_config(asked)
    if base_only:
        return ModelRequest(cfg, run)
    weights = list(asked.weights) if asked.get("weights") is not None else None
    if run is None:
        with name_option_in_errors("adapters"):
            files = [find_lora_file(Path(str(file)).expanduser()) for file in asked.get("adapters") or []]
        found = ModelRequest(cfg, adapters=files)
    else:
        method = instantiate(cfg.method)
        result = resolve_result(run, method, asked.get("checkpoint"))
        if result.is_dir() and method.output_kind == "adapter":
            with name_option_in_errors("run"):
                found = ModelRequest(cfg, run, method, adapters=[find_lora_file(result)])
        else:
            found = ModelRequest(cfg, run, method, result)
    count = max(len(found.adapters), int(found.supports_scaling))
    if weights is not None and run and not count:
        raise ValueError(f"weights={weights}: {found.result} has no strength, which only an adapter has")
    found.weights = [1.0] * count if weights is None else check_weight_count(weights, count)
    return found


def resolve_result(run: Path, method: Method, checkpoint: str | None) -> Path:
    """The folder of the run's result, or of the best on the way, or the file of its checkpoint at a step."""
    if checkpoint in (None, FINAL_RESULT):
        return find_result_folder(run, method)
    if checkpoint == BEST:
        if not (run / BEST).is_dir():
            raise ValueError(f"checkpoint=best: {run} has none; train with evaluate_every=N checkpoint_metric=SCORE")
        return run / BEST
    if not str(checkpoint).isdecimal():
        raise ValueError(f"checkpoint={checkpoint}: choose a step, best, or result")
    try:
        return select_checkpoints(run, [int(checkpoint)])[0][1]
    except ValueError as error:
        there = str(error).partition("; ")[2]
        raise ValueError(f"checkpoint={checkpoint}: choose a step, best, or result; {there}") from None


def open_model(asked: DictConfig, base_only: bool = False, compute_digest: bool = False) -> LoadedModel:
    """On the device of `asked.accelerator`, frozen, in the precision of `asked.precision` when there is one.

    `base_only` is the base alone, without what was learned.
    """
    found, names = resolve_model(asked, base_only), []
    torch.manual_seed(0)
    model = instantiate(found.cfg.model)
    if found.result and not found.is_checkpoint:
        found.method.load(model, found.result)
    adapted = found.is_checkpoint and found.method.output_kind == "adapter"
    if found.is_checkpoint and not adapted:
        load_checkpoint_weights(model, found.method, found.result, found.cfg.get("seed", 0))
    digest = hash_weights(model) if compute_digest else None
    if adapted:
        load_checkpoint_weights(model, found.method, found.result, found.cfg.get("seed", 0))
        scale_checkpoint_adapter(model, found.weights)
        names = ["default"]
    else:
        with name_option_in_errors("run" if found.run else "adapters"):
            names = load_adapters(model, found.adapters, found.weights if found.adapters else [])
    model.to(select_device(asked.get("accelerator") or "auto")).requires_grad_(False).eval()
    if asked.get("precision"):
        precision = instantiate(asked.precision)
        precision.configure_tf32()
        model.compute_dtype = precision.dtype
    return LoadedModel(model, found.cfg, found.run, found.adapters, found.weights, names, digest)


def scale_checkpoint_adapter(model: StableDiffusion, weights: list[float]) -> None:
    """The one adapter of a checkpoint at its weight."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        if weights and weights[0] != 1:
            layer.scale_layer(weights[0])


@contextmanager
def name_option_in_errors(word: str):
    """Refusals that name the word which was given."""
    try:
        yield
    except ValueError as error:
        told = str(error).replace("adapter=", f"{word}=", 1)
        raise ValueError(told if len(told) <= MAX_ERROR_LENGTH else f"{told[:MAX_ERROR_LENGTH]}…") from None

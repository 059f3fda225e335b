"""Load the model for an app: a run's result or checkpoint, or a base with LoRA files."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdft.config import check_option_types
from sdft.distributed import count_gpus, select_device
from sdft.evaluation.variants import BEST, find_result_folder, load_checkpoint_weights, select_checkpoints
from sdft.lora.file import check_weight_count, contains_dora, find_lora_file
from sdft.lora.scaling import load_adapters, set_adapter_scales
from sdft.methods.base import Method
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.precision import hash_in_fp32, load_model, set_precision
from sdft.runs.newest_run import find_newest_run
from sdft.runs.run_config import read_run_config
from sdft.training.precision import Precision
from sdft.training.strategy import ACCELERATORS

OPTION_TYPES = {
    "run": str | None,
    "adapters": list[str],
    "weights": list[float],
    "accelerator": str,
    "checkpoint": str | None,
}
MAX_ERROR_LENGTH = 400  # characters of an error message, which may list every layer
FINAL_RESULT = "result"  # the value of `checkpoint` for the final result of a run


@dataclass
class ModelRequest:
    """The files that the options select, resolved before anything is loaded.

    `adapters` are LoRA files, including that of a run; for other methods `result` is a result folder or a checkpoint.
    """

    cfg: DictConfig
    run: Path | None = None
    method: Method | None = None
    result: Path | None = None
    adapters: list[Path] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def is_checkpoint(self) -> bool:
        return self.result is not None and self.result.suffix == ".ckpt"

    @property
    def is_adapter_checkpoint(self) -> bool:
        return self.is_checkpoint and self.method is not None and self.method.output_kind == "adapter"

    def needs_fp32(self, part: str) -> bool:
        """Whether the fp32 weights of a part are needed to load the trained ones."""
        reads_base = self.result is not None and self.method is not None and self.method.needs_fp32(part)
        with name_option_in_errors("run" if self.run else "adapters"):
            return reads_base or any(map(contains_dora, self.adapters))

    @property
    def supports_scaling(self) -> bool:
        """Whether the adapter can have a weight; a PiSSA checkpoint cannot, as it also changes the base weights."""
        is_pissa = getattr(self.method, "init_lora_weights", None) == "pissa"
        return bool(self.adapters) or (self.is_adapter_checkpoint and not is_pissa)


@dataclass
class LoadedModel:
    """`cfg` of the run or the app; `adapters` are the loaded files, with their weights and their `adapter_names` in the model.

    `digest` is the hash of all weights except those of adapters, if requested.
    """

    model: DiffusionModel
    cfg: DictConfig
    run: Path | None
    adapters: list[Path]
    weights: list[float]
    adapter_names: list[str] = field(default_factory=list)
    digest: str | None = None


def resolve_model_config(app_cfg: DictConfig) -> tuple[DictConfig, Path | None]:
    """The config that defines the model, and its run; without `model` and `run` that of the newest finished run."""
    check_option_types(app_cfg, {key: hint for key, hint in OPTION_TYPES.items() if app_cfg.get(key) is not None})
    has_model = app_cfg.get("adapters") is not None or app_cfg.get("model") is not None
    if has_model and app_cfg.get("run"):
        raise ValueError(f"run={app_cfg.run}: not together with model or adapters; give run=… or model=… adapters=[…]")
    if not has_model:
        run = Path(app_cfg.run).expanduser() if app_cfg.get("run") else find_newest_run()
        return read_run_config(run), run
    if app_cfg.get("checkpoint") is not None:
        raise ValueError(f"checkpoint={app_cfg.checkpoint}: requires run=…, as only a run has checkpoints")
    if not OmegaConf.is_dict(app_cfg.get("model")):
        has_adapters = app_cfg.get("adapters") is not None
        option = f"adapters={list(app_cfg.adapters)}" if has_adapters else f"model={app_cfg.model}"
        raise ValueError(f"{option}: give model=NAME of a base model, such as model=sd15")
    return app_cfg, None


def resolve_model(app_cfg: DictConfig, base_only: bool = False) -> ModelRequest:
    """Find the files of the model; `base_only` needs none. `ValueError` for missing files or a wrong number of weights."""
    if app_cfg.get("accelerator") not in (None, *ACCELERATORS):
        raise ValueError(f"accelerator={app_cfg.accelerator}: choose one of {', '.join(ACCELERATORS)}")
    if app_cfg.get("accelerator") == "gpu" and not count_gpus():
        raise ValueError("accelerator=gpu: torch finds no GPU on this machine; choose auto or cpu")
    cfg, run = resolve_model_config(app_cfg)
    if base_only:
        return ModelRequest(cfg, run)
    weights = list(app_cfg.weights) if app_cfg.get("weights") is not None else None
    if run is None:
        with name_option_in_errors("adapters"):
            files = [find_lora_file(Path(str(file)).expanduser()) for file in app_cfg.get("adapters") or []]
        request = ModelRequest(cfg, adapters=files)
    else:
        method = instantiate(cfg.method)
        result = resolve_result(run, method, app_cfg.get("checkpoint"))
        if result.is_dir() and method.output_kind == "adapter":
            with name_option_in_errors("run"):
                request = ModelRequest(cfg, run, method, adapters=[find_lora_file(result)])
        else:
            request = ModelRequest(cfg, run, method, result)
    count = max(len(request.adapters), int(request.supports_scaling))
    if weights is not None and run and not count:
        raise ValueError(f"weights={weights}: {request.result} has no scalable adapter; remove weights")
    request.weights = [1.0] * count if weights is None else check_weight_count(weights, count)
    return request


def resolve_result(run: Path, method: Method, checkpoint: str | None) -> Path:
    """The folder of the run's final or best result, or the file of the checkpoint at a step."""
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
        available = str(error).partition("; ")[2]
        raise ValueError(f"checkpoint={checkpoint}: choose a step, best, or result; {available}") from None


def open_model(app_cfg: DictConfig, base_only: bool = False, compute_digest: bool = False) -> LoadedModel:
    """Load the model, frozen, on the device of `app_cfg.accelerator` and in `app_cfg.precision`, if set.

    `base_only` loads the base without the trained weights.
    """
    request, names = resolve_model(app_cfg, base_only), []
    torch.manual_seed(0)
    device = torch.device(select_device(app_cfg.get("accelerator") or "auto"))
    precision = instantiate(app_cfg.precision).resolve(device) if app_cfg.get("precision") else Precision()
    model = load_model(request.cfg.model, precision.dtype, request.needs_fp32)
    if request.result and not request.is_checkpoint:
        request.method.load(model, request.result)
    if request.is_checkpoint and not request.is_adapter_checkpoint:
        load_checkpoint_weights(model, request.method, request.result, request.cfg.get("seed", 0))
    digest = hash_in_fp32(model) if compute_digest else None
    if request.is_adapter_checkpoint:
        load_checkpoint_weights(model, request.method, request.result, request.cfg.get("seed", 0))
        names = ["default"] if request.weights else []
        if names:
            set_adapter_scales(model, dict(zip(names, request.weights, strict=True)))
    else:
        with name_option_in_errors("run" if request.run else "adapters"):
            names = load_adapters(model, request.adapters, request.weights if request.adapters else [])
    model.requires_grad_(False).eval()
    if app_cfg.get("precision"):
        precision.configure_tf32()
        set_precision(model, precision.dtype)
    model.to(device)
    return LoadedModel(model, request.cfg, request.run, request.adapters, request.weights, names, digest)


@contextmanager
def name_option_in_errors(option: str):
    """Replace `adapter=` in errors by the option that the user gave, and truncate them."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace("adapter=", f"{option}=", 1)
        raise ValueError(message if len(message) <= MAX_ERROR_LENGTH else f"{message[:MAX_ERROR_LENGTH]}…") from None

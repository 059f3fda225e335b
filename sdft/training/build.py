"""Build the objects of a run from its config."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.runs.invocation import Invocation
from sdft.training.datasets import RunDatasets
from sdft.training.inputs import RunInputs
from sdft.training.loggers import is_wandb_logger
from sdft.training.optimizer_options import check_optimizer_options, divide_into_buckets
from sdft.training.run_setup import COMPONENTS

LIGHT_COMPONENTS = (*COMPONENTS, "metrics", "prior", "protocol")


def build_components(cfg: DictConfig, choices: Mapping[str, str]) -> dict:
    """Instantiate the components that need neither images nor weights, so that their errors come first.

    `choices` names the selected file of each config group.
    """
    from sdft.training.trainer import check_callbacks, check_trainer_flags

    parts = {key: instantiate(cfg[key]) for key in LIGHT_COMPONENTS}
    parts["precision"] = parts["precision"].resolve_in_config(cfg, parts["strategy"].device())
    parts |= {"callbacks": instantiate(cfg.callbacks) or {}, "trainer": dict(cfg.trainer or {})}
    check_callbacks(parts["callbacks"])
    check_trainer_flags(parts["trainer"])
    check_optimizer_options(cfg, parts, choices)
    check_compatibility(cfg, parts, choices)
    if parts["training"].compile == "graphs":
        from sdft.training.step_graphs import check_graphs

        check_graphs(cfg, parts)
    return parts


def check_compatibility(cfg: DictConfig, parts: dict, choices: Mapping[str, str]) -> None:
    """`ValueError` for components that cannot be combined."""
    method, name = parts["method"], choices.get("method")
    if method.is_distillation and not parts["objective"].is_distillation:
        raise ValueError(f"method={name}: supports objective=consistency only; leave the objective unset")
    if parts["objective"].is_distillation and not method.is_distillation:
        raise ValueError(f"objective=consistency: method={name} has no teacher; choose method=lcm_lora")
    if method.is_distillation and parts["prior"]:
        raise ValueError(f"prior={choices['prior']}: not available with distillation; set prior=none")
    if cfg.smooth_diffusion_weight and parts["training"].compile == "regional":
        raise ValueError(
            f"smooth_diffusion_weight={cfg.smooth_diffusion_weight}: compile=regional does not support second derivatives; "
            "use compile=off"
        )
    if cfg.smooth_diffusion_weight and parts["strategy"].name == "fsdp":
        raise ValueError(
            f"smooth_diffusion_weight={cfg.smooth_diffusion_weight}: strategy=fsdp does not support second derivatives; "
            "use strategy=ddp"
        )


def build_module(cfg: DictConfig, parts: dict, model):
    """The training module; `ValueError` for optimizers that do not fit the other options."""
    from sdft.training.block_offload import offload_frozen_weights
    from sdft.training.step_graphs import get_module_class

    training = parts["training"]
    scale = training.samples_per_step(parts["strategy"].world_size()) if training.scale_lr else 1
    optimizer = instantiate(cfg.optimizer, _convert_="all")  # plain lists, because checkpoints store them
    module = get_module_class(training.compile)(
        model,
        parts["method"],
        parts["objective"],
        disable_fused(optimizer)
        if parts["precision"].needs_grad_scaler
        else divide_into_buckets(optimizer, cfg, parts),
        parts["schedule"],
        lr={part: rate * scale for part, rate in training.get_part_lr(model).items()},
        max_grad_norm=training.max_grad_norm,
        compute_dtype=parts["precision"].dtype,
        checkpointing=training.gradient_checkpointing,
        seed=cfg.seed,
        smoothness=parts["smoothness"] if parts["smoothness"].weight else None,
        timestep_sampling=parts["timestep_sampling"],
        sharded=parts["strategy"].shards_weights(),
        master_weights=parts["precision"].master_weights,
    )
    offload_frozen_weights(module, training.offload_blocks, parts["strategy"].device())
    rates = {part: module.lr[part] for part in module.get_trainable_parts()}
    training.check_trained_parts(rates)
    if optimizer.func.__name__ == "Prodigy":
        check_prodigy(rates, cfg.method.get("loraplus_lr_ratio", 1))
    return module


def check_prodigy(rates: dict[str, float], loraplus_lr_ratio: float) -> None:
    """`ValueError` unless all parameters have one rate of about 1, of which Prodigy estimates the multiple."""
    if loraplus_lr_ratio != 1:
        raise ValueError(
            f"method.loraplus_lr_ratio={loraplus_lr_ratio}: Prodigy estimates one learning rate for all parameters; "
            "use method.loraplus_lr_ratio=1"
        )
    if len(set(rates.values())) > 1 or min(rates.values()) < 0.1:
        given = " ".join(f"part_lr.{part}={rate:g}" for part, rate in rates.items())
        raise ValueError(f"{given}: Prodigy estimates one learning rate for all parameters; use lr=1.0")


def disable_fused(optimizer: partial) -> partial:
    """Turn off the fused step: it unscales fp16 gradients after clipping, which must see them unscaled.

    `fused=False` would also turn off foreach operations, torch's default on a GPU.
    """
    return partial(optimizer.func, **{key: value for key, value in optimizer.keywords.items() if key != "fused"})


def build_trainer(
    cfg: DictConfig,
    parts: dict,
    datasets: RunDatasets,
    folder: Path,
    inputs: RunInputs,
    evaluation,
    invocation: Invocation,
):
    """Lightning's trainer with the project's callbacks and loggers; `evaluation` runs during training."""
    from sdft.runs.metrics_csv import MetricsCsv
    from sdft.training.async_checkpoint import AsyncCheckpointIO
    from sdft.training.run_callbacks import build_callbacks
    from sdft.training.trainer import build_lightning_trainer

    training = parts["training"]
    previous_run, checkpoint = inputs.previous_run, inputs.checkpoint
    is_resumed_wandb_run = previous_run and is_wandb_logger(cfg.logger)
    logger_options = previous_run.build_wandb_options() if is_resumed_wandb_run else {}
    if cfg.logger and "folder" in cfg.logger:
        logger_options |= {"folder": cfg.logger.folder or str(folder)}
    logger = instantiate(cfg.logger, **logger_options)
    devices, metrics_csv = parts["strategy"].trainer_kwargs(), MetricsCsv(folder)
    if not checkpoint:
        metrics_csv.truncate(0)
    plugins = [*devices["plugins"], *parts["precision"].build_plugins()]
    plugins.append(AsyncCheckpointIO(training.checkpoints_total_limit))
    return build_lightning_trainer(
        **devices | {"plugins": plugins},
        max_steps=inputs.steps,
        accumulate_grad_batches=training.gradient_accumulation_steps,
        logger=[metrics_csv, *([logger] if logger else [])],
        callbacks=build_callbacks(cfg, parts, datasets, inputs, evaluation, invocation),
        log_every_n_steps=training.log_every,
        enable_checkpointing=True,
        default_root_dir=folder,
        **parts["trainer"],
    )

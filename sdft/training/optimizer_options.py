"""Check the optimizer with the other options, and decide which runs update weights bucket by bucket."""

from collections.abc import Mapping
from functools import partial

from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.training.optimizers import check_optimizer, check_sharded_optimizer, has_averaged_weights

OPTIMIZERS = "adamw, adamw_bf16, adamw8bit or adafactor"


def get_optimizer_name(cfg: DictConfig) -> str:
    return str(cfg.optimizer._target_).rpartition(".")[2]


def is_bucketed(cfg: DictConfig, parts: Mapping) -> bool:
    """Whether weights are updated bucket by bucket."""
    has_master_weights, name = parts["precision"].master_weights, get_optimizer_name(cfg)
    return parts["training"].fused_backward or not has_master_weights or name == "AdamWBF16"


def divide_into_buckets(optimizer: partial, cfg: DictConfig, parts: Mapping) -> partial:
    """A constructor of the optimizer that updates bucket by bucket if the options ask for it, else `optimizer`."""
    if not is_bucketed(cfg, parts):
        return optimizer
    from sdft.training.bucketed_optimizer import BucketedOptimizer

    fused_backward = parts["training"].fused_backward
    return partial(BucketedOptimizer, build=optimizer, seed=cfg.seed, fused_backward=fused_backward)


def check_optimizer_options(cfg: DictConfig, parts: Mapping, choices: Mapping[str, str]) -> None:
    """`ValueError` for optimizers that cannot be built or do not fit the other options."""
    check_optimizer(cfg.optimizer)
    if parts["strategy"].name == "fsdp":
        check_sharded_optimizer(cfg.optimizer, choices.get("optimizer"))
    constructor, ema = instantiate(cfg.optimizer, _convert_="all").func, parts["training"].ema
    if ema and has_averaged_weights(constructor):
        raise ValueError(f"ema={ema}: {constructor.__name__} averages the weights itself; use ema=0")
    check_low_memory_options(cfg, parts)


def check_low_memory_options(cfg: DictConfig, parts: Mapping) -> None:
    """`ValueError` for options that `fused_backward`, bf16 weights or bf16 states do not support."""
    strategy, precision, training = parts["strategy"], parts["precision"], parts["training"]
    has_adapter, name = parts["method"].output_kind != "pipeline", get_optimizer_name(cfg)
    if training.fused_backward:
        check_fused_backward(training, has_adapter, strategy.world_size())
    if not precision.master_weights and has_adapter:
        raise ValueError("precision=bf16_weights: for full fine-tuning only; adapters are small, use precision=bf16")
    if not is_bucketed(cfg, parts):
        return
    key = "optimizer=adamw_bf16" if precision.master_weights else "precision=bf16_weights"
    key = "fused_backward=true" if training.fused_backward else key
    from sdft.training.bucketed_optimizer import SUPPORTED

    if name not in SUPPORTED:
        raise ValueError(f"{key}: {name} does not update weights independently; use optimizer={OPTIMIZERS}")
    if precision.needs_grad_scaler:
        raise ValueError(f"{key}: does not support fp16 gradient scaling; choose precision=bf16 or fp32")
    if training.compile == "graphs":
        raise ValueError(f"{key}: compile=graphs keeps gradients in place; use compile=off or regional")
    if strategy.shards_weights():
        raise ValueError(
            f"{key}: strategy=fsdp does not support it; use strategy=ddp, or optimizer=adamw with precision=bf16"
        )


def check_fused_backward(training, has_adapter: bool, num_processes: int) -> None:
    """`ValueError` for options for which gradients must exist until the end of the step."""
    if has_adapter:
        raise ValueError(
            "fused_backward=true: for full fine-tuning only; the gradients of adapters are small, use fused_backward=false"
        )
    if training.gradient_accumulation_steps > 1:
        raise ValueError(
            f"fused_backward=true: gradient_accumulation_steps={training.gradient_accumulation_steps} keeps gradients; "
            "use gradient_accumulation_steps=1"
        )
    if training.max_grad_norm:
        raise ValueError(
            f"fused_backward=true: max_grad_norm={training.max_grad_norm} needs the norm of all gradients before the first "
            "update; use max_grad_norm=0"
        )
    if num_processes > 1:
        raise ValueError(
            f"fused_backward=true: {num_processes} processes average gradients after the backward pass; use devices=1"
        )

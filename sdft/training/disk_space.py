"""Check before the first step that the files of a run fit on the disk."""

import os
import shutil
from pathlib import Path

from sdft.data.latent_cache import CACHE_DIR
from sdft.training.memory_estimate import count_bytes, estimate_optimizer_state_bytes, format_bytes, list_state_shapes
from sdft.training.module import DiffusionModule

PNG_BYTES_PER_PIXEL = 1.5  # approximate


def estimate_checkpoint_size(module: DiffusionModule, ema: bool) -> int:
    """Bytes of one checkpoint: trainable weights, optimizer states, and the EMA if enabled."""
    trainable, shapes = module.get_trainable_parameters().values(), list_state_shapes(module)
    optimizer_states = estimate_optimizer_state_bytes(module.optimizer, shapes, module.model.unet.device)
    average = ema * sum(4 * p.numel() for p in trainable)  # in fp32
    return sum(map(count_bytes, trainable)) + average + optimizer_states


def estimate_result_size(module: DiffusionModule) -> int:
    """Bytes of the method's output: a full pipeline, or an adapter in two formats."""
    if module.method.output_kind == "pipeline":
        return sum(map(count_bytes, module.model.parameters()))
    return 2 * sum(map(count_bytes, module.get_trainable_parameters().values()))


def estimate_run_size(
    module: DiffusionModule, training, sampling, prompts: list[str], resolution: int, steps: int
) -> int:
    """Peak bytes of the run folder: a new checkpoint is written before the oldest one is deleted."""
    checkpoints = 1 + count_step_checkpoints(training, steps)
    sample_steps = 2 + (steps // training.sample_every if training.sample_every else 0)
    images = sample_steps * len(sampling.requests(prompts)) * PNG_BYTES_PER_PIXEL * resolution**2
    results = (1 + bool(training.checkpoint_metric)) * estimate_result_size(module)
    return int(checkpoints * estimate_checkpoint_size(module, bool(training.ema)) + results + images)


def count_step_checkpoints(training, steps: int) -> int:
    """The largest number of step checkpoints that exist at once, not counting the one being written."""
    if interval := training.get_save_interval_steps():
        return min(training.checkpoints_total_limit, steps // interval)
    return training.checkpoints_total_limit if training.save_every else 0


def check_disk_space(folder: Path, run_size: int, cache_size: int, training) -> None:
    """`ValueError` if `run_size` bytes of a run and `cache_size` missing bytes of the caches do not fit."""
    run_parent, cache_parent = find_existing_parent(folder), find_existing_parent(CACHE_DIR)
    same_disk = os.stat(run_parent).st_dev == os.stat(cache_parent).st_dev
    advice = [*suggest_fewer_checkpoints(training), *["cache=ram"] * bool(cache_size and same_disk)]
    check_free_space(folder, run_parent, run_size + cache_size * same_disk, advice)
    if not same_disk:
        check_free_space(CACHE_DIR, cache_parent, cache_size, ["cache=ram"])


def check_free_space(folder: Path, existing_parent: Path, size: int, advice: list[str]) -> None:
    if size > (free := shutil.disk_usage(existing_parent).free):
        options = [*advice, "or another hydra.run.dir"] if folder != CACHE_DIR else advice
        raise ValueError(
            f"{folder}: about {format_bytes(size)} of disk space required, {format_bytes(free)} available; "
            f"use {', '.join(options)}"
        )


def suggest_fewer_checkpoints(training) -> list[str]:
    """Overrides that reduce the number of checkpoints."""
    if not training.save_every:
        return []
    if training.checkpoints_total_limit > 1:
        return [f"checkpoints_total_limit={training.checkpoints_total_limit - 1} or fewer"]
    return ["save_every=0"]


def find_existing_parent(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())

"""Whether what a run will write fits where it writes: refused before the first step, not told in the middle of a checkpoint."""

import os
import shutil
from pathlib import Path

from sdft.data.latent_cache import CACHE_DIR
from sdft.training.memory_estimate import count_bytes, estimate_optimizer_state_bytes, format_bytes
from sdft.training.module import DiffusionModule

PNG_BYTES_PER_PIXEL = 1.5  # bytes of a picture's PNG file, about


def estimate_checkpoint_size(module: DiffusionModule, ema: bool) -> int:
    """Bytes of one file: what learns, its optimizer's states, and its average."""
    learned = module.get_trainable_parameters().values()
    shapes = [tuple(p.shape) for p in learned]
    return sum(map(count_bytes, learned)) * (1 + ema) + estimate_optimizer_state_bytes(
        module.optimizer, shapes, module.device
    )


def estimate_result_size(module: DiffusionModule) -> int:
    """Bytes of what the method leaves: a pipeline's whole model, or an adapter in two formats."""
    if module.method.output_kind == "pipeline":
        return sum(map(count_bytes, module.model.parameters()))
    return 2 * sum(map(count_bytes, module.get_trainable_parameters().values()))


def estimate_run_size(module: DiffusionModule, loop, sampling, prompts: list[str], resolution: int, steps: int) -> int:
    """Bytes that the run's folder holds at its fullest: a new checkpoint stands beside the `keep` that are there."""
    every = loop.get_save_interval_steps()
    checkpoints = 1 + (
        min(loop.checkpoints_total_limit, steps // every)
        if every
        else loop.checkpoints_total_limit
        if loop.save_every
        else 0
    )
    sampled = 2 + (steps // loop.sample_every if loop.sample_every else 0)
    pictures = sampled * len(sampling.requests(prompts)) * PNG_BYTES_PER_PIXEL * resolution**2
    results = (1 + bool(loop.checkpoint_metric)) * estimate_result_size(module)
    return int(checkpoints * estimate_checkpoint_size(module, bool(loop.ema)) + results + pictures)


def check_disk_space(folder: Path, size: int, cached: int, loop) -> None:
    """`ValueError` when a run of `size` bytes does not fit beside the `cached` bytes that caches are yet to take."""
    there, caches = find_existing_parent(folder), find_existing_parent(CACHE_DIR)
    same = os.stat(there).st_dev == os.stat(caches).st_dev
    check_free_space(
        folder, there, size + cached * same, [*suggest_fewer_checkpoints(loop), *["cache=ram"] * bool(cached and same)]
    )
    if not same:
        check_free_space(CACHE_DIR, caches, cached, ["cache=ram"])


def check_free_space(folder: Path, there: Path, size: int, advice: list[str]) -> None:
    if size > (free := shutil.disk_usage(there).free):
        raise ValueError(
            f"{folder}: the run writes about {format_bytes(size)}, {format_bytes(free)} are free; "
            f"give {', '.join([*advice, 'or another hydra.run.dir'] if folder != CACHE_DIR else advice)}"
        )


def suggest_fewer_checkpoints(loop) -> list[str]:
    """Words that make fewer checkpoints."""
    if not loop.save_every:
        return []
    return (
        [f"checkpoints_total_limit={loop.checkpoints_total_limit - 1} or fewer"]
        if loop.checkpoints_total_limit > 1
        else ["save_every=0"]
    )


def find_existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())

"""Whether what a run will write fits where it writes: refused before the first step, not told in the middle of a checkpoint."""

import os
import shutil
from pathlib import Path

from sdft.data.latent_cache import PLACE
from sdft.training.memory_estimate import amount, size_of, states
from sdft.training.module import FineTuning

PER_PIXEL = 1.5  # bytes of a picture's PNG file, about


def checkpoint_size(module: FineTuning, ema: bool) -> int:
    """Bytes of one file: what learns, its optimizer's states, and its average."""
    learned = module.learned().values()
    shapes = [tuple(p.shape) for p in learned]
    return sum(map(size_of, learned)) * (1 + ema) + states(module.optimizer, shapes, module.device)


def result_size(module: FineTuning) -> int:
    """Bytes of what the method leaves: a pipeline's whole model, or an adapter in two formats."""
    if module.method.result == "pipeline":
        return sum(map(size_of, module.model.parameters()))
    return 2 * sum(map(size_of, module.learned().values()))


def run_size(module: FineTuning, loop, sampling, prompts: list[str], resolution: int, steps: int) -> int:
    """Bytes that the run's folder holds at its fullest: a new checkpoint stands beside the `keep` that are there."""
    every = loop.save_steps()
    checkpoints = 1 + (min(loop.checkpoints_total_limit, steps // every) if every else loop.checkpoints_total_limit if loop.save_every else 0)
    sampled = 2 + (steps // loop.sample_every if loop.sample_every else 0)
    pictures = sampled * len(sampling.requests(prompts)) * PER_PIXEL * resolution**2
    results = (1 + bool(loop.checkpoint_metric)) * result_size(module)
    return int(checkpoints * checkpoint_size(module, bool(loop.ema)) + results + pictures)


def check_room(folder: Path, size: int, cached: int, loop) -> None:
    """`ValueError` when a run of `size` bytes does not fit beside the `cached` bytes that caches are yet to take."""
    there, caches = existing(folder), existing(PLACE)
    same = os.stat(there).st_dev == os.stat(caches).st_dev
    refuse(folder, there, size + cached * same, [*less(loop), *["cache=ram"] * bool(cached and same)])
    if not same:
        refuse(PLACE, caches, cached, ["cache=ram"])


def refuse(folder: Path, there: Path, size: int, advice: list[str]) -> None:
    if size > (free := shutil.disk_usage(there).free):
        raise ValueError(
            f"{folder}: the run writes about {amount(size)}, {amount(free)} are free; "
            f"give {', '.join([*advice, 'or another hydra.run.dir'] if folder != PLACE else advice)}"
        )


def less(loop) -> list[str]:
    """Words that make fewer checkpoints."""
    if not loop.save_every:
        return []
    return [f"checkpoints_total_limit={loop.checkpoints_total_limit - 1} or fewer"] if loop.checkpoints_total_limit > 1 else ["save_every=0"]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())

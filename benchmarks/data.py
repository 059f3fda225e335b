"""Speed of the data pipeline: python benchmarks/data.py [IMAGES] [SIDE]

Generates IMAGES (10,000) photograph-like JPEGs of about SIDE (512) pixels in a temporary folder and prints a table: images per
second for decoding and cropping, for the VAE, for building the cache and for reading samples from it; the fraction of a cached
training step spent waiting for data; and the start-up time with and without the cache.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from PIL import Image


def generate_images(folder: Path, count: int, side: int) -> None:
    """Save images of smooth noise with several aspect ratios, and their captions."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        width, height = (int(side * rng.uniform(0.7, 1.4)) for _ in range(2))
        coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg", quality=90)
        (folder / f"{number:06d}.txt").write_text(f"image {number % 1000} of a set")


def time_call(function) -> tuple[float, object]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main(count: int, side: int) -> None:
    from sdft.data.dataset_report import build_dataset_report
    from sdft.data.image_folder import ImageFolder
    from sdft.data.latent_cache import fill_caches
    from sdft.data.training_dataset import DataSettings
    from sdft.models.loading import load_stable_diffusion

    folder = Path(tempfile.mkdtemp())
    generate_images(folder / "images", count, side)
    os.chdir(folder)
    model = load_stable_diffusion("tiny-sd")
    settings = DataSettings(resolution=64)

    def start_up():
        source = ImageFolder(str(folder / "images"))
        dataset = settings.build_dataset(source, model, samples_per_step=4)
        fill_caches([dataset], model, text=True)
        build_dataset_report(source, dataset.sizes, dataset.plan.steps_per_epoch, model.tokenizer, model.chunk_length)
        return dataset

    rows = []
    source = ImageFolder(str(folder / "images"))
    uncached = DataSettings(resolution=64, cache="off").build_dataset(source, model)
    subset = min(count, 1000)
    seconds, _ = time_call(lambda: [uncached[n] for n in range(subset)])
    rows.append(("decode, crop and draw noise, one thread", f"{subset / seconds:.0f} images/s"))
    pixels = torch.zeros(8, 3, 64, 64)
    seconds, _ = time_call(lambda: [model.moments(pixels) for _ in range(40)])
    rows.append(("VAE encoder, batch 8", f"{320 / seconds:.0f} images/s"))
    first, dataset = time_call(start_up)
    rows.append(("start-up: scan, report and build the cache", f"{first:.1f} s, {count / first:.0f} images/s"))
    second, dataset = time_call(start_up)
    rows.append((f"start-up with cache: scan, report, read; {count} images", f"{second:.1f} s"))
    seconds, _ = time_call(lambda: [dataset[n] for n in range(subset)])
    rows.append(("samples from the cache, one thread", f"{subset / seconds:.0f} images/s"))

    steps = [dataset.plan.sample_numbers(k) for k in range(10)]
    batch = dataset.collate([dataset[n] for n in steps[0]])
    unet, noise = model.unet.requires_grad_(True), torch.randn_like(batch["mean"])
    timesteps = model.noise_process.find_timesteps(batch["timestep_draw"])

    def train_step():
        unet(noise, timesteps, batch["context"]).sample.square().mean().backward()

    train_step()
    compute = time_call(lambda: [train_step() for _ in range(10)])[0] / 10
    wait = time_call(lambda: [dataset.collate([dataset[n] for n in step]) for step in steps])[0] / 10
    rows.append(("fraction of a step of batch 4 waiting for data (no workers)", f"{wait / (compute + wait):.1%}"))
    for name, value in rows:
        print(f"{name:<62}{value}")


if __name__ == "__main__":
    args = [int(arg) for arg in sys.argv[1:]]
    main(*args, *[10_000, 512][len(args) :])

"""How fast the data path is: python benchmarks/data.py [PICTURES] [SIDE]

Generates PICTURES (10,000) photographs-like JPEGs of about SIDE (512) pixels in a temporary folder and prints a table: pictures a
second of decoding and cropping, of the cache's build beside the autoencoder alone, and of samples from the cache; the share of a
cached training step that waits for data; and the seconds that start-up takes the first and the second time.
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


def generate(folder: Path, count: int, side: int) -> None:
    """Smooth noise of several aspect ratios, different in every file, with captions."""
    chance = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        width, height = (int(side * chance.uniform(0.7, 1.4)) for _ in range(2))
        coarse = Image.fromarray(chance.integers(0, 255, (12, 12, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg", quality=90)
        (folder / f"{number:06d}.txt").write_text(f"picture {number % 1000} of a set")


def timed(task) -> tuple[float, object]:
    began = time.perf_counter()
    result = task()
    return time.perf_counter() - began, result


def main(count: int, side: int) -> None:
    from sdft.data.dataset_report import build_dataset_report
    from sdft.data.image_folder import ImageFolder
    from sdft.data.latent_cache import fill_caches
    from sdft.data.training_samples import DataSettings
    from sdft.models.loading import load_stable_diffusion

    work = Path(tempfile.mkdtemp())
    generate(work / "pictures", count, side)
    os.chdir(work)
    model = load_stable_diffusion("tiny-sd")
    stream = DataSettings(resolution=64)

    def start():
        source = ImageFolder(str(work / "pictures"))
        samples = stream.samples(source, model, samples_per_step=4)
        fill_caches([samples], model, text=True)
        build_dataset_report(source, samples.sizes, samples.plan.steps_per_epoch, model.tokenizer, model.chunk_length)
        return samples

    rows = []
    source = ImageFolder(str(work / "pictures"))
    bare = DataSettings(resolution=64, cache="off").samples(source, model)
    few = min(count, 1000)
    seconds, _ = timed(lambda: [bare[n] for n in range(few)])
    rows.append(("decode, crop and draw, one thread", f"{few / seconds:.0f} pictures/s"))
    batch = torch.zeros(8, 3, 64, 64)
    seconds, _ = timed(lambda: [model.moments(batch) for _ in range(40)])
    rows.append(("the autoencoder alone, batch 8", f"{320 / seconds:.0f} pictures/s"))
    first, samples = timed(start)
    rows.append(("start-up: scan, report and cache to build", f"{first:.1f} s, {count / first:.0f} pictures/s"))
    second, samples = timed(start)
    rows.append((f"start-up again: scan, report, cache; {count} pictures", f"{second:.1f} s"))
    seconds, _ = timed(lambda: [samples[n] for n in range(few)])
    rows.append(("samples from the cache, one thread", f"{few / seconds:.0f} pictures/s"))

    steps = [samples.plan.sample_numbers(k) for k in range(10)]
    drawn = samples.collate([samples[n] for n in steps[0]])
    unet, noise = model.unet.requires_grad_(True), torch.randn_like(drawn["mean"])
    learn = lambda: unet(noise, drawn["timestep"], drawn["context"]).sample.square().mean().backward()  # noqa: E731
    learn()
    busy = timed(lambda: [learn() for _ in range(10)])[0] / 10
    wait = timed(lambda: [samples.collate([samples[n] for n in step]) for step in steps])[0] / 10
    rows.append(("a step of batch 4 waits for data (no workers)", f"{wait / (busy + wait):.1%}"))
    for name, figure in rows:
        print(f"{name:<56}{figure}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*given, *[10_000, 512][len(given) :])

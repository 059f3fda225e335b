"""Memory per image and time to the first sample with many small images: python benchmarks/many_images.py [COUNT] [FOLDER]

Starts are separate processes with BASE_COUNT and COUNT images; what they differ by is the memory per image and process. The time
is compared with that of a plain dataset, which lists, opens and stats the same files, in the same process.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

BASE_COUNT = 10_000  # tables of the interpreter grow in steps of megabytes, which fewer images would be charged with
SIDE, BATCH_SIZE = 32, 16  # pixels, images


def create_images(folder: Path, count: int) -> Path:
    """Images of noise, with a caption each; existing ones are kept."""
    import numpy as np
    from PIL import Image

    path = folder / f"images-{count}"
    path.mkdir(parents=True, exist_ok=True)
    for number in range(len(list(path.glob("*.txt"))), count):
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(path / f"image-{number:06d}.png", compress_level=1)
        (path / f"image-{number:06d}.txt").write_text(f"a photo of thing number {number}")
    return path


def read_anonymous_memory() -> int:
    """Bytes of this process, without memory-mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class PlainDataset:
    """What a short script does: list the images, open their headers and stat them; decode one for a sample."""

    def __init__(self, path: Path):
        from PIL import Image

        self.files, self.sizes, self.times = [], [], []
        for folder, _, names in os.walk(path):
            for name in sorted(names):
                if name.endswith(".png"):
                    file = os.path.join(folder, name)
                    with Image.open(file) as image:
                        self.sizes.append(image.size)
                    self.times.append(os.stat(file).st_mtime_ns)
                    self.files.append(file)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        import numpy as np
        from PIL import Image

        file = self.files[index]
        caption = Path(file).with_suffix(".txt").read_text()
        return np.asarray(Image.open(file).convert("RGB")), caption


def load_first_batch(dataset) -> None:
    import torch

    next(iter(torch.utils.data.DataLoader(dataset, sampler=range(BATCH_SIZE), batch_size=BATCH_SIZE)))


def start(path: Path) -> dict:
    """What a run does with its data before the first step."""
    from sdft.data.dataset_report import build_dataset_report
    from sdft.data.image_folder import ImageFolder
    from sdft.data.latent_cache import fill_caches
    from sdft.data.training_dataset import DataSettings
    from sdft.models.heap import return_free_memory
    from sdft.models.loading import load_stable_diffusion
    from sdft.runs.data_index import build_data_index
    from sdft.runs.hashing import hash_dataset

    model, began, times = load_stable_diffusion("tiny-sd"), time.perf_counter(), {}
    cpu_began = time.process_time()
    source = ImageFolder(str(path))
    times["folder"] = time.perf_counter() - began
    hash_dataset(source), build_data_index({"": source})
    dataset = DataSettings(SIDE).build_dataset(source, model)
    fill_caches([dataset], model, text=True)
    times["caches"] = time.perf_counter() - began
    plan = dataset.plan
    report = build_dataset_report(source, dataset.sizes, plan.steps_per_epoch, model.tokenizer, model.max_prompt_tokens)
    del report
    return_free_memory()
    load_first_batch(dataset)
    times["first batch"], cpu_times = time.perf_counter() - began, [time.process_time() - cpu_began]
    result = {"images": len(source), "bytes": read_anonymous_memory(), "seconds": times, "cpu seconds": cpu_times}
    began, cpu_began = time.perf_counter(), time.process_time()
    load_first_batch(PlainDataset(path))
    times["plain"] = time.perf_counter() - began
    cpu_times.append(time.process_time() - cpu_began)
    return result


def main(count: int = 50_000, folder: str = "outputs/many_images") -> None:
    results = []
    for number in (BASE_COUNT, count):
        path = create_images(Path(folder), number)
        for order in ("first", "second"):
            command = [sys.executable, __file__, "--start", str(path)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            seconds = ", ".join(f"{key} {value:.1f} s" for key, value in result["seconds"].items())
            print(f"{number} images, {order} start: {seconds}, {result['bytes'] / 2**20:.0f} MB", flush=True)
        results.append(result)
    small, large = results
    per_image = (large["bytes"] - small["bytes"]) / (large["images"] - small["images"])
    print(f"{per_image:.0f} bytes per image and process")
    ours, plain = (1e3 * large["seconds"][key] / large["images"] for key in ("first batch", "plain"))
    cpu_ours, cpu_plain = large["cpu seconds"]
    print(f"second start: {ours:.2f} ms per image, a plain dataset {plain:.2f} ms: {ours / plain:.1f} times, ", end="")
    print(f"in processor time {cpu_ours / cpu_plain:.1f} times")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        print(json.dumps(start(Path(sys.argv[2]))))
    else:
        main(*(int(argument) if argument.isdigit() else argument for argument in sys.argv[1:]))

"""Speed of sampling and evaluation: python benchmarks/sampling.py [model=sd15 precision=bf16 steps=20 batch=4 rounds=3]

Alternates our batched sampling and a bare diffusers pipeline with the same batches, on the embedded model; then times sampling
and scoring of 200 images. On a busy machine the ratio is reliable, absolute times are not. With `model`, a group choice of
train.py, it times our sampling alone: that model with random weights, at its own resolution, on the GPU if there is one.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import statistics
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from measurement import report_table, split_options

from sdft.config import CONF
from sdft.data.digits import Digits
from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.protocol import EvaluationProtocol
from sdft.models.loading import load_stable_diffusion
from sdft.models.precision import load_model
from sdft.models.sampling import Sampling
from sdft.training.callbacks.metrics import get_peak_memory_gb
from sdft.training.precision import Precision

ROUNDS, BATCH = 5, 20


def time_call(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_model(options: dict) -> None:
    """Print a table of the time per image and per step of a batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"model={options['model']}", "model.weights=random", f"precision={options['precision']}"]
        cfg = compose("train", overrides)
    precision: Precision = instantiate(cfg.precision)
    model = load_model(cfg.model, precision.dtype).to(device)
    model.compute_dtype = precision.dtype
    sampling = Sampling(steps=options["steps"], images=options["batch"], batch_size=options["batch"])
    resolution = options["resolution"] or cfg.resolution
    sampling(model, ["one"], resolution)  # its images are on the CPU, so the device has finished
    times = [time_call(lambda: sampling(model, ["one"], resolution)) for _ in range(options["rounds"])]
    seconds, memory = statistics.median(times), get_peak_memory_gb(device)
    rows = [("ms an image", "ms a step of a batch", "memory GB")]
    per_image, per_step = 1000 * seconds / options["batch"], 1000 * seconds / options["steps"]
    rows.append((f"{per_image:.0f}", f"{per_step:.1f}", f"{memory:.2f}"))
    title = f"{options['model']} {options['precision']}, batch {options['batch']}, {resolution} px, {options['steps']} steps"
    file = Path(options["json"]) if options["json"] else None
    report_table(title, rows, file, seconds=times, memory_gb=memory)


def main(args: list[str]) -> None:
    defaults = {"model": "", "precision": "fp32", "steps": 20, "batch": 4, "rounds": 3, "resolution": 0, "json": ""}
    options, _ = split_options(args, **defaults)
    if options["model"]:
        measure_model(options)
    else:
        compare_with_pipeline()


def compare_with_pipeline():
    model, source = load_stable_diffusion("tiny-sd"), Digits()
    evaluation_spec = source.evaluation_spec()
    sampling = Sampling(steps=20, guidance_scale=3.0, images=20, batch_size=BATCH)
    requests = sampling.requests(evaluation_spec.prompts[:2])
    pipeline = model.build_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def sample_with_pipeline():
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            pipeline(
                [prompt for prompt, _ in batch],
                num_inference_steps=20,
                guidance_scale=3.0,
                height=32,
                width=32,
                generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
            )

    def sample_with_ours():
        list(sampling.sample_images(model, requests, 32))

    sample_with_pipeline(), sample_with_ours()
    pairs = [(time_call(sample_with_pipeline), time_call(sample_with_ours)) for _ in range(ROUNDS)]
    ratio = statistics.median(ours / bare for bare, ours in pairs)
    bare_seconds = statistics.median(bare for bare, _ in pairs)
    print(f"bare pipeline {bare_seconds / len(requests) * 1000:.0f} ms per image, ratio {ratio:.2f}")

    start = time.perf_counter()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        scorers = instantiate(compose("train", ["metrics=digits"]).metrics).load_scorers()
    protocol = EvaluationProtocol(controls=["a handwritten one"] * 5, images=20)
    groups = protocol.build_groups(evaluation_spec, [], [])
    evaluator = Evaluator(scorers, protocol, groups, source, evaluation_spec)
    images = {group.name: list(sampling(model, group.prompts, 32)) for group in groups}
    sampling_seconds = time.perf_counter() - start
    evaluator.build_metrics(images)
    evaluator.update_metrics(images)
    evaluator.compute_references()
    scoring_seconds = time.perf_counter() - start - sampling_seconds
    num_images = sum(map(len, images.values()))
    print(f"{num_images} images: sampled in {sampling_seconds:.1f} s, scored in {scoring_seconds:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])

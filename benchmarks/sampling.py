"""Sampling and evaluation: python benchmarks/sampling.py

Our batched sampling against a bare diffusers pipeline with the same batches, in turns, on the embedded model; and what it
takes to draw and score 200 pictures. Ratios within one run hold on a busy machine, seconds do not.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import statistics
import time

import torch

from sdft.data.digits import Digits
from sdft.evaluation.evaluator import Evaluator
from sdft.evaluation.metrics_config import MetricsConfig
from sdft.evaluation.protocol import EvaluationProtocol
from sdft.models.loading import load_stable_diffusion
from sdft.models.sampling import Sampling

ROUNDS, BATCH = 5, 20


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    model, source = load_stable_diffusion("tiny-sd"), Digits()
    evaluation_spec = source.evaluation_spec()
    sampling = Sampling(steps=20, guidance_scale=3.0, images=20, batch_size=BATCH)
    requests = sampling.requests(evaluation_spec.prompts[:2])
    pipeline = model.build_pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def bare():
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

    def ours():
        list(sampling.sample_images(model, requests, 32))

    bare(), ours()
    pairs = [(timed(bare), timed(ours)) for _ in range(ROUNDS)]
    ratio = statistics.median(mine / theirs for theirs, mine in pairs)
    print(
        f"bare pipeline {statistics.median(p[0] for p in pairs) / len(requests) * 1000:.0f} ms a picture, ratio {ratio:.2f}"
    )

    start = time.perf_counter()
    judges = MetricsConfig("tiny-clip", perceptual="clip", distribution_metrics=["CMMD"]).load_scorers()
    protocol = EvaluationProtocol(controls=["a handwritten one"] * 5, images=20)
    groups = protocol.build_groups(evaluation_spec, [], [])
    exam = Evaluator(judges, protocol, groups, source, evaluation_spec)
    pictures = {group.name: list(sampling(model, group.prompts, 32)) for group in groups}
    drawn = time.perf_counter() - start
    exam.build_metrics(pictures)
    exam.update_metrics(pictures)
    exam.compute_references()
    scored = time.perf_counter() - start - drawn
    print(f"{sum(map(len, pictures.values()))} pictures: drawn in {drawn:.1f} s, scored in {scored:.1f} s")


if __name__ == "__main__":
    main()

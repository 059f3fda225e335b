"""Regression test: fifty steps of every method reproduce the losses stored in `losses.json`.

`python tests/test_losses.py` rewrites the file, in a commit that changes losses on purpose;
`python tests/test_losses.py compare [RUN …]` prints the largest deviations on this machine.
Runs use one thread, so that the number of cores does not matter.

On the build that wrote the file, losses match to a relative 1e-6. Another CPU, instruction set or torch version sums in another
order, and fifty steps of Adam amplify the rounding error. Measured: equal with AVX2, which is
selected also where there is AVX-512 (lcm_lora is off by 5.4e-5 with that); with ATEN_CPU_CAPABILITY=default
ONEDNN_MAX_CPU_ISA=SSE41 four runs deviate by at most 6.8e-7. The tolerance of 2e-5 is thirty times that, for untested CPUs and
versions, and still a fifth of the effect of a loss weight of 1.0001.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from contextlib import chdir, contextmanager
from pathlib import Path
from subprocess import PIPE

import conftest
import pytest
import torch

CPU_FLAGS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
STEPS = 50  # of the stored losses
FILE = Path(__file__).with_name("losses.json")
SAME_BUILD_TOLERANCE, OTHER_BUILD_TOLERANCE = 1e-6, 2e-5
SUBJECT = ["instance_prompt=a sks three", "class_prompt=a handwritten three", "data.path=subject"]
SUBJECT += ["num_class_images=0", "class_path=class"]
RUNS = {
    "lora": ["method=lora"],
    "dora": ["method=lora", "method.use_dora=true", "rank=4", "alpha=2", "gradient_accumulation_steps=2"],
    "lokr": ["method=lora", "method.adapter_type=lokr", "rank=4"],
    "sft": ["method=sft", "lr=1e-4"],
    "sft_text_encoder": ["method=sft", "lr=1e-4", "method.text_encoder=true", "ema=0.9", "schedule=cosine", "warmup=5"],
    "dreambooth": ["method=dreambooth", "lr=1e-4", *SUBJECT],
    "dreambooth_lora": ["method=dreambooth_lora", "lr=1e-3", *SUBJECT],
    "textual_inversion": ["method=textual_inversion", "num_vectors=2"],
    "pretrain": ["method=pretrain", "lr=1e-4"],
    "unweighted": [
        "method=lora",
        "weighting=none",
        "loss=huber",
        "input_perturbation=0.1",
        "pyramid_noise=0.3",
        "flip=true",
    ],
    "velocity": ["method=lora", "model.prediction_type=v_prediction", "model.zero_terminal_snr=true", "snr_gamma=5"],
    "lcm_lora": ["method=lcm_lora", "rank=4", "lr=1e-3"],
    "smooth": ["method=lora", "smooth_diffusion_weight=0.5"],
}


def describe_build() -> dict[str, str]:
    """The properties that rounding errors depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    cpu = [
        " ".join(re.findall(rf"^{key}\s*: (.*)$", cpuinfo, re.M)[:1]) for key in ("model name", "cpu family", "model")
    ]
    cpu = " ".join(cpu).strip() or platform.processor()
    return {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "cpu": cpu}


@contextmanager
def use_one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def compute_losses(home: Path, name: str, steps: int) -> list[float]:
    """The training losses of the first steps."""
    from sdft.data.digits import Digits
    from sdft.data.inked_digits import InkedDigits

    for folder, source in {"subject": Digits("candy", [3], 4), "class": InkedDigits(1)}.items():
        if not (home / folder).exists():
            conftest.save_images(source, home / folder, 4)
    overrides = [
        f"steps={steps}",
        "sample_every=0",
        "prompts=[a three]",
        "sampling.steps=1",
        "model.weights=pretrained",
        "save_every=0",
    ]
    with chdir(home), use_one_thread():
        _, folder = conftest.run_training(home, *overrides, *RUNS[name], name=f"{name}-{steps}")
    return [float(row["train/loss"]) for row in conftest.read_metric_rows(folder)]


@contextmanager
def start_avx2_process(home: Path):
    """A function that computes the losses in another process, which selects its kernels before it imports torch."""
    environment = os.environ | (AVX2 if "avx512f" in CPU_FLAGS else {})
    command = [sys.executable, __file__, "compute", str(home)]
    with subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True) as process:

        def compute(name: str, steps: int = STEPS) -> list[float]:
            print(name, steps, file=process.stdin, flush=True)
            while not (line := process.stdout.readline()).startswith("losses "):
                assert line, "the process has failed"
            return json.loads(line.removeprefix("losses "))

        yield compute
        process.stdin.close()


@pytest.fixture(scope="module")
def compute_with_avx2(tmp_path_factory):
    with start_avx2_process(tmp_path_factory.mktemp("losses")) as compute:
        yield compute


def compute_deviations(name: str, losses: list[float]) -> list[float]:
    """Relative deviation of every step from the stored losses."""
    stored = json.loads(FILE.read_text())["losses"][name][: len(losses)]
    return [abs(a - b) / abs(b) for a, b in zip(losses, stored, strict=True)]


def check_losses(compute, name: str, steps: int) -> None:
    same_build = json.loads(FILE.read_text())["build"] == describe_build()
    tolerance = SAME_BUILD_TOLERANCE if same_build else OTHER_BUILD_TOLERANCE
    deviations = compute_deviations(name, compute(name, steps))
    assert len(deviations) == steps
    assert max(deviations) <= tolerance, f"step {deviations.index(max(deviations)) + 1} is off by {max(deviations):.2e}"


def test_ten_steps_reproduce_the_stored_losses(compute_with_avx2):
    check_losses(compute_with_avx2, "lora", 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_fifty_steps_reproduce_the_stored_losses(compute_with_avx2, name):
    check_losses(compute_with_avx2, name, STEPS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["compute"]:
        for line in sys.stdin:
            name, steps = line.split()
            print("losses", json.dumps(compute_losses(Path(sys.argv[2]), name, int(steps))), flush=True)
        sys.exit()
    with tempfile.TemporaryDirectory() as home, start_avx2_process(Path(home)) as compute:
        losses = {name: compute(name) for name in RUNS if name in sys.argv[2:] or not sys.argv[2:]}
    if sys.argv[1:2] == ["compare"]:
        print({name: f"{max(compute_deviations(name, values)):.1e}" for name, values in losses.items()})
    else:
        FILE.write_text(json.dumps({"build": describe_build(), "losses": losses}, indent=1) + "\n")

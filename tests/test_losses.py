"""Fifty steps of every method against the losses that they had when `losses.json` was written.

`python tests/test_losses.py` writes the file anew, which belongs to a commit that means to change them;
`python tests/test_losses.py compare [RUN …]` prints the largest deviations here.
One thread, so that how many a machine has does not matter.

On the build that wrote the file the losses are the same to 1e-6 of their size. Another CPU, instruction set or torch adds
numbers up in another order, and fifty steps of Adam make the last digit's difference larger. Measured here: with AVX2 they are
equal; with ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 four of the runs are off by at most 6.8e-7. 2e-5 is thirty
times that, for CPUs and versions that could not be tried, and still a fifth of what a loss weight of 1.0001 changes.
"""

import json
import platform
import re
import sys
import tempfile
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import torch
from conftest import save_images, trained
from test_training_run import rows

FILE = Path(__file__).with_name("losses.json")
SAME, ELSEWHERE = 1e-6, 2e-5
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


def build() -> dict[str, str]:
    """What the last digits of a loss depend on."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    cpu = [" ".join(re.findall(rf"^{key}\s*: (.*)$", told, re.M)[:1]) for key in ("model name", "cpu family", "model")]
    cpu = " ".join(cpu).strip() or platform.processor()
    return {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "cpu": cpu}


@contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def losses(home: Path, name: str) -> list[float]:
    """The training loss of each of fifty steps."""
    from sdft.data.digits import Digits, InkedDigits

    for folder, source in {"subject": Digits("candy", [3], 4), "class": InkedDigits(1)}.items():
        if not (home / folder).exists():
            save_images(source, home / folder, 4)
    words = [
        "steps=50",
        "sample_every=0",
        "prompts=[a three]",
        "sampling.steps=1",
        "model.weights=pretrained",
        "save_every=0",
    ]
    with chdir(home), one_thread():
        _, folder = trained(home, *words, *RUNS[name], name=name)
    return [float(row["train/loss"]) for row in rows(folder)]


def deviations(name: str, found: list[float]) -> list[float]:
    """Of every step, as a part of the stored loss."""
    stored = json.loads(FILE.read_text())["losses"][name]
    return [abs(a - b) / abs(b) for a, b in zip(found, stored, strict=True)]


@pytest.mark.parametrize(
    "name", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "lora")]
)
def test_fifty_steps_have_the_losses_that_they_had(tmp_path, name):
    tolerance = SAME if json.loads(FILE.read_text())["build"] == build() else ELSEWHERE
    far = deviations(name, losses(tmp_path, name))
    assert len(far) == 50 and max(far) <= tolerance, f"step {far.index(max(far)) + 1} is off by {max(far):.2e}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        found = {name: losses(Path(home), name) for name in RUNS if name in sys.argv[2:] or not sys.argv[2:]}
    if sys.argv[1:2] == ["compare"]:
        print({name: f"{max(deviations(name, values)):.1e}" for name, values in found.items()})
    else:
        FILE.write_text(json.dumps({"build": build(), "losses": found}, indent=1) + "\n")

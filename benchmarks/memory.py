"""Estimated GPU memory of training steps of real models, from their configurations: python benchmarks/memory.py [architecture]

The estimate runs the module's own step on tensors without data (`sdft.training.memory_estimate`); nothing is downloaded. Counted
are live tensors: the CUDA context (about 0.5 GB), workspaces and fragmentation are in published figures, and come on top.
"""

import sys
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import init_empty_weights
from bitsandbytes.optim import AdamW8bit

from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.base import Method
from sdft.methods.full import FullFineTuning
from sdft.methods.lora import LoRA
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import build_untrained
from sdft.training.adamw_bf16 import AdamWBF16
from sdft.training.bucketed_optimizer import BucketedOptimizer
from sdft.training.memory_estimate import GB, count_offloaded_bytes, estimate_memory
from sdft.training.module import DiffusionModule
from sdft.training.step_spec import StepSpec

RESOLUTIONS = {"sd15": 512, "sd21": 768, "sdxl": 1024}
RANK = 16
ADAPTERS = {
    name: {"rank": RANK, "alpha": RANK, "text_encoder": False, "adapter_type": kind}
    for name, kind in {"LoRA": "lora", "LoKr": "lokr"}.items()
}
# peaks that other trainers publish for full fine-tuning in bf16, batch size 1, on the whole card, in GB
PUBLISHED = {("sd15", "SFT"): 7.0, ("sdxl", "SFT"): 10.3}
ADAMW = partial(torch.optim.AdamW, fused=False)


@dataclass
class Setup:
    """What is trained, with batch size 1 in bf16; `fused_backward` also does without fp32 copies of the weights."""

    label: str
    method: Method
    optimizer: partial = ADAMW
    checkpointing: bool = True
    fused_backward: bool = False


def build_setups() -> list[Setup]:
    setups = [
        Setup(
            f"{label} {'with' if checkpointing else 'without'} checkpointing",
            LoRA(**options),
            checkpointing=checkpointing,
        )
        for label, options in ADAPTERS.items()
        for checkpointing in (False, True)
    ]
    setups.append(Setup("SFT with fp32 copies and states", FullFineTuning()))
    full = {
        "bf16": partial(AdamWBF16),
        "8-bit": partial(AdamW8bit),
        "factored": partial(torch.optim.Adafactor, eps=(None, 1.0)),
    }
    return setups + [
        Setup(f"SFT, {name} states, fused", FullFineTuning(), full[name], fused_backward=True) for name in full
    ]


def build_sample(model, resolution: int) -> dict[str, torch.Tensor]:
    """A sample with cached latents and text."""
    shape = model.batch_shape(1, (resolution, resolution))
    latents = dict.fromkeys(("mean", "std", "posterior", "noise"), torch.empty(shape))
    text = {name: torch.empty(size) for name, size in model.text_shapes(1).items()}
    sides = {"mask": torch.empty(1, 1, *shape[2:]), "geometry": torch.empty(1, 6), "timestep_draw": torch.zeros(1)}
    return latents | text | sides


def build_module(model, setup: Setup) -> DiffusionModule:
    optimizer, schedule = setup.optimizer, lambda *_: None
    if setup.fused_backward:
        optimizer = partial(BucketedOptimizer, build=optimizer, seed=0, fused_backward=True)
    return DiffusionModule(
        model, setup.method, DiffusionLoss(), optimizer, schedule, dict.fromkeys(model.parts, 1e-4),
        compute_dtype=torch.bfloat16, checkpointing=setup.checkpointing, master_weights=not setup.fused_backward,
    )  # fmt: skip


def estimate(architecture: str, setup: Setup) -> dict[str, float]:
    """GiB of the weights on the GPU, and at the peak of a training step and of decoding an image, with batch size 1 in bf16."""
    resolution = RESOLUTIONS[architecture]
    with init_empty_weights():
        model = build_untrained(ASSETS_FOLDER / architecture)
    with torch.device("meta"):
        module = build_module(model, setup)
        module.offloaded_parts = ["vae", *model.text_encoders]
        sample = build_sample(model, resolution)
    memory = estimate_memory(module, StepSpec(sample, 1, 1, torch.device("cpu"), num_images=1, resolution=resolution))
    offloaded = count_offloaded_bytes(module)  # as on a GPU; the estimate for a CPU counts the encoders as weights
    rest = memory.weights - offloaded + memory.gradients + memory.optimizer_states
    peaks = {"step": rest + memory.activations, "images": rest + offloaded + memory.sampling}
    return {kind: size / GB for kind, size in ({"weights": memory.weights - offloaded} | peaks).items()}


def main(architectures: list[str]) -> None:
    print(f"{'GiB':46}{'weights':>9}{'step':>9}{'images':>9}  published, GB")
    for architecture in architectures or RESOLUTIONS:
        for setup in build_setups():
            sizes = estimate(architecture, setup)
            published = PUBLISHED.get((architecture, setup.label[:3]), "")
            label = f"{architecture} {RESOLUTIONS[architecture]} px {setup.label}"
            print(f"{label:46}" + "".join(f"{size:9.2f}" for size in sizes.values()) + f"{published:>15}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

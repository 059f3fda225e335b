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
from sdft.training.block_offload import offload_blocks
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
# peaks that other trainers publish in bf16, batch size 1, on the whole card: full fine-tuning in GB, adapters in GiB
PUBLISHED = {
    ("sd15", "SFT"): 7.0,
    ("sdxl", "SFT"): 10.3,
    ("sd15", "LoRA without checkpointing"): 2.87,
    ("sdxl", "LoKr without checkpointing"): 13.0,
    ("sdxl", "LoKr with checkpointing"): 6.5,
}
CPU = torch.device("cpu")
ADAMW = partial(torch.optim.AdamW, fused=False)


@dataclass
class Setup:
    """What is trained, in bf16; `fused_backward` also does without fp32 copies of the weights."""

    label: str
    method: Method
    optimizer: partial = ADAMW
    checkpointing: bool | str = True
    fused_backward: bool = False
    offload_blocks: float = 0.0
    batch_size: int = 1


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
    lora = LoRA(**ADAPTERS["LoRA"])
    setups += [
        Setup("LoRA with activations offloaded", lora, checkpointing="offload"),
        Setup("LoRA with half of the blocks offloaded", lora, offload_blocks=0.5),
        Setup("LoRA with all blocks offloaded", lora, offload_blocks=1.0),
        Setup("LoRA with checkpointing, batch 4", lora, batch_size=4),
        Setup("LoRA with activations offloaded, batch 4", lora, checkpointing="offload", batch_size=4),
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
    """GiB of the weights on the GPU, and at the peak of a training step and of decoding an image."""
    resolution = RESOLUTIONS[architecture]
    with init_empty_weights():
        model = build_untrained(ASSETS_FOLDER / architecture)
    with torch.device("meta"):
        module = build_module(model, setup)
        module.offloaded_parts = ["vae", *model.text_encoders]
        if setup.offload_blocks:
            module.offloaded_blocks = offload_blocks(model.unet, setup.offload_blocks, CPU)
        sample = build_sample(model, resolution)
    step = StepSpec(sample, setup.batch_size, 1, CPU, num_images=1, resolution=resolution)
    memory = estimate_memory(module, step)
    offloaded = count_offloaded_bytes(module)  # as on a GPU; the estimate for a CPU counts the encoders as weights
    rest = memory.weights - offloaded + memory.gradients + memory.optimizer_states
    peaks = {"step": rest + memory.activations, "images": rest + offloaded + memory.sampling}
    return {kind: size / GB for kind, size in ({"weights": memory.weights - offloaded} | peaks).items()}


def main(architectures: list[str]) -> None:
    print(f"{'GiB':46}{'weights':>9}{'step':>9}{'images':>9}  published")
    for architecture in architectures or RESOLUTIONS:
        for setup in build_setups():
            sizes = estimate(architecture, setup)
            name = "SFT" if setup.label.startswith("SFT") else setup.label
            published = PUBLISHED.get((architecture, name), "")
            label = f"{architecture} {RESOLUTIONS[architecture]} px {setup.label}"
            print(f"{label:46}" + "".join(f"{size:9.2f}" for size in sizes.values()) + f"{published:>15}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Estimated GPU memory of training steps of real models, from their configurations: python benchmarks/memory.py [architecture]

The estimate runs the module's own step on tensors without data (`sdft.training.memory_estimate`); nothing is downloaded.
"""

import sys
from functools import partial

import torch
from accelerate import init_empty_weights

from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.lora import LoRA
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import build_untrained
from sdft.training.memory_estimate import GB, count_offloaded_bytes, estimate_memory
from sdft.training.module import DiffusionModule
from sdft.training.step_spec import StepSpec

RESOLUTIONS = {"sd15": 512, "sd21": 768, "sdxl": 1024}
ADAPTERS = {"LoRA": "lora", "LoKr": "lokr"}
RANK = 16


def build_sample(model, resolution: int) -> dict[str, torch.Tensor]:
    """A sample with cached latents and text."""
    shape = model.batch_shape(1, (resolution, resolution))
    latents = dict.fromkeys(("mean", "std", "posterior", "noise"), torch.empty(shape))
    text = {name: torch.empty(size) for name, size in model.text_shapes(1).items()}
    sides = {"mask": torch.empty(1, 1, *shape[2:]), "geometry": torch.empty(1, 6), "timestep_draw": torch.zeros(1)}
    return latents | text | sides


def estimate(architecture: str, adapter: str, checkpointing: bool) -> dict[str, float]:
    """GiB of the weights on the GPU, and at the peak of a training step and of decoding an image, with batch size 1 in bf16."""
    with init_empty_weights():
        model = build_untrained(ASSETS_FOLDER / architecture)
    with torch.device("meta"):
        method = LoRA(RANK, RANK, text_encoder=False, adapter_type=adapter)
        optimizer, schedule = partial(torch.optim.AdamW, fused=False), lambda *_: None
        rates = dict.fromkeys(model.parts, 1e-4)
        module = DiffusionModule(
            model, method, DiffusionLoss(), optimizer, schedule, rates, compute_dtype=torch.bfloat16,
            checkpointing=checkpointing,
        )  # fmt: skip
        module.offloaded_parts = ["vae", *model.text_encoders]
        sample = build_sample(model, RESOLUTIONS[architecture])
    resolution = RESOLUTIONS[architecture]
    memory = estimate_memory(module, StepSpec(sample, 1, 1, torch.device("cpu"), num_images=1, resolution=resolution))
    offloaded = count_offloaded_bytes(module)  # as on a GPU; the estimate for a CPU counts the encoders as weights
    rest = memory.weights - offloaded + memory.gradients + memory.optimizer_states
    peaks = {"step": rest + memory.activations, "images": rest + offloaded + memory.sampling}
    return {kind: size / GB for kind, size in ({"weights": memory.weights - offloaded} | peaks).items()}


def main(architectures: list[str]) -> None:
    print(f"{'GiB':40}{'weights':>9}{'step':>9}{'images':>9}")
    for architecture in architectures or RESOLUTIONS:
        for name, adapter in ADAPTERS.items():
            for checkpointing in (False, True):
                sizes = estimate(architecture, adapter, checkpointing)
                label = f"{architecture} {name} {'with' if checkpointing else 'without'} checkpointing"
                print(f"{label:40}" + "".join(f"{size:9.2f}" for size in sizes.values()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

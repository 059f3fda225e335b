"""Faster kernels for the same step: the UNet's repeated blocks compiled, and convolutions with channels last.

Regions, not the whole network: a dozen blocks of a few kinds share their code, so that the first step takes seconds and not
minutes. Only what learns is compiled; samples and validation, which have other shapes and few steps, run as they are.
"""

import os
import shutil
from importlib.util import find_spec

import torch
from torch import nn

COMPILED_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
MIN_STEPS_TO_COMPILE = 1000  # steps after which waiting for the compiler has surely paid


def should_compile(compile: str, device: torch.device, steps: int) -> bool:
    """Whether the blocks are to be compiled: `auto` does in long runs on a GPU; `ValueError` where it cannot be done.

    On a CPU the embedded UNet gained nothing by it: see benchmarks/RESULTS.md.
    """
    missing = find_missing_compiler(device)
    if compile == "regional" and missing:
        raise ValueError(f"compile=regional: torch's compiler needs {missing}; install it, or give compile=off")
    return compile == "regional" or (
        compile == "auto" and device.type == "cuda" and steps >= MIN_STEPS_TO_COMPILE and not missing
    )


def find_missing_compiler(device: torch.device) -> str | None:
    """What torch's compiler would not find on this machine."""
    if device.type == "cuda":
        return None if find_spec("triton") else "triton"
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    return None if any(shutil.which(name) for name in compilers if name) else "a C++ compiler, such as g++"


def compile_blocks(unet: nn.Module, shapes: int) -> int:
    """Compile the repeated blocks in place, for steps that learn; `shapes` counts the sizes of latents. Returns how many."""
    blocks = [module for module in unet.modules() if type(module).__name__ in COMPILED_BLOCKS]
    for block in blocks:
        block.compile(dynamic=False if shapes == 1 else None)
        block._compiled_call_impl = use_compiled_when_training(block._compiled_call_impl, block._call_impl)
    return len(blocks)


def use_compiled_when_training(compiled, plain):
    def call(*args, **kwargs):
        return (compiled if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return call


def set_channels_last(unet: nn.Module) -> None:
    """The layout that a GPU's convolutions are fastest in; the values are the same."""
    unet.to(memory_format=torch.channels_last)

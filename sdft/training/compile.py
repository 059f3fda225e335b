"""Faster kernels for the training step: regional compilation of the UNet's blocks, and channels-last convolutions.

The repeated blocks share compiled code, so the first step waits seconds instead of minutes. Only training steps are compiled;
sampling and validation, with other shapes and few steps, run eagerly. Later runs find the kernels in `KERNEL_FOLDER`.
"""

import inspect
import os
import re
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import MethodType

import torch
from torch import nn

import sdft.distributed as processes
from sdft.runs.terminal import print_text

COMPILED_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
COMPILER_MODULES = ("torch._dynamo", "torch._inductor", "torch._functorch")  # where the compiler's errors are defined
MAX_ERROR_LENGTH = 200  # characters
MIN_STEPS_TO_COMPILE = 1000  # steps from which the compile time is certainly regained
GRAPHS_PER_BLOCK = 2  # at most: for the first latent size, and for all others
MIN_RECOMPILE_LIMIT = 8  # torch's own
# Compiled kernels are code, so torch's pickles of them stay out of folders that people pass on, and out of the shared /tmp.
KERNEL_FOLDER = Path("~/.cache/sdft/kernels")


def should_compile(compile: str, device: torch.device, steps: int, obstacle: str | None = None) -> bool:
    """Whether to compile the blocks; `auto` does so in long runs on a GPU, and prints why not. `ValueError` without a compiler.

    `obstacle` is a reason of the module. On a CPU the embedded UNet does not get faster: see benchmarks/RESULTS.md.
    """
    if compile not in ("regional", "auto"):
        return False
    missing = find_missing_compiler(device)
    if compile == "regional":
        if missing:
            raise ValueError(f"compile=regional: torch's compiler needs {missing}; install it, or use compile=off")
        return True
    if obstacle := obstacle or find_obstacle(device, steps, missing):
        if processes.rank() == 0:
            print_text(f"compile    off: {obstacle}")
        return False
    return True


def find_obstacle(device: torch.device, steps: int, missing: str | None) -> str | None:
    """Why `compile=auto` does not compile on this device, or None."""
    if device.type != "cuda":
        return "compiled blocks are faster on a CUDA GPU only"
    if steps < MIN_STEPS_TO_COMPILE:
        return f"fewer than {MIN_STEPS_TO_COMPILE} steps may not regain the compile time"
    return missing and f"torch's compiler needs {missing}"


def find_missing_compiler(device: torch.device) -> str | None:
    """The dependency of torch's compiler that is missing on this machine, or None."""
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:
        return "a newer torch, whose torch.compile has a recompile_limit"
    if device.type == "cuda":
        return None if find_spec("triton") else "triton"
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    return None if any(shutil.which(name) for name in compilers if name) else "a C++ compiler, such as g++"


def compile_blocks(unet: nn.Module, shapes: int) -> int:
    """Compile the repeated blocks in place for training; `shapes` is the number of latent sizes. Return the block count."""
    store_kernels()
    blocks = [module for module in unet.modules() if type(module).__name__ in COMPILED_BLOCKS]
    counts = Counter(map(type, blocks))
    forwards = {cls: build_training_forward(cls.forward, shapes, count) for cls, count in counts.items()}
    for block in blocks:
        block.forward = MethodType(forwards[type(block)], block)
    if processes.rank() == 0:
        print_text(f"compile    {len(blocks)} blocks; the first steps wait for the compiler", flush=True)
    return len(blocks)


def store_kernels() -> None:
    """Store compiled kernels for later runs, unless `TORCHINDUCTOR_CACHE_DIR` names another folder or this one is read-only."""
    folder = KERNEL_FOLDER.expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def build_training_forward(eager, shapes: int, count: int):
    """A `forward` that is compiled when gradients are enabled, else `eager`; `ValueError` if the compiler fails.

    The `count` blocks share it, each with a graph of its own if their widths differ. Beyond the limit blocks would run eagerly.
    """
    limit = max(GRAPHS_PER_BLOCK * count, MIN_RECOMPILE_LIMIT)
    dynamic = False if shapes == 1 else None
    compiled = torch.compile(eager, dynamic=dynamic, recompile_limit=limit, isolate_recompiles=True)

    def forward(block, *args, **kwargs):
        if not torch.is_grad_enabled():
            return eager(block, *args, **kwargs)
        try:
            return compiled(block, *args, **kwargs)
        except Exception as error:
            if not type(error).__module__.startswith(COMPILER_MODULES):
                raise
            cause = find_error_line(str(error))
        raise ValueError(f"compile: torch's compiler fails: {cause}; mend it, or use compile=off")

    return forward


def find_error_line(output: str) -> str:
    """The first line of a compiler's output that names an error; the output has pages of commands and generated code."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror: ", line)]
    return (errors or lines or ["without a message"])[0][:MAX_ERROR_LENGTH]


def remove_compiled_forwards(network: nn.Module) -> None:
    """Undo `compile_blocks` in a copy of a network."""
    for module in network.modules():
        vars(module).pop("forward", None)


def apply_memory_format(unet: nn.Module, compute_dtype: torch.dtype, device: torch.device) -> None:
    """Use channels-last for the Tensor Cores of a GPU (16 bit or TF32)."""
    if device.type == "cuda" and (compute_dtype is not torch.float32 or torch.backends.cudnn.allow_tf32):
        set_channels_last(unet)


def set_channels_last(unet: nn.Module) -> None:
    """Use the memory format of a GPU's fastest convolutions; values do not change."""
    unet.to(memory_format=torch.channels_last)

"""Functions of torch that ask for a GPU, replaced while a pretended GPU is active."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import torch
from torch.utils._python_dispatch import _pop_mode, _push_mode

from pretended_gpu.generator import build_generator
from pretended_gpu.tensor import GPU, GPUTensor

NAME, CAPABILITY, MEMORY = "Pretended GPU", (9, 0), 80 * 2**30
PROPERTIES = SimpleNamespace(
    name=NAME, major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=MEMORY, multi_processor_count=132
)
ENTER_AUTOCAST, SUBMIT = torch.autocast.__enter__, ThreadPoolExecutor.submit
STREAM = SimpleNamespace(device=GPU, is_capturing=lambda: False)


def constant(value=None):
    """A function that returns `value`; torch's compiler wants one per name."""
    return lambda *_, **__: value


def refuse_autocast(autocast):
    """`autocast.__enter__` would cast nothing, as C++ does not see a GPU."""
    if autocast._enabled and autocast.device == GPU.type:
        raise RuntimeError("autocast is not pretended")
    return ENTER_AUTOCAST(autocast)


def build_submit(gpu):
    """`submit` of thread pools, whose threads would not see the mode `gpu`."""

    def submit(pool, function, *args, **kwargs):
        def run_in_mode():
            _push_mode(gpu)
            try:
                with torch.autograd.set_multithreading_enabled(False):
                    return function(*args, **kwargs)
            finally:
                _pop_mode()

        return SUBMIT(pool, run_in_mode)

    return submit


def enter_patches(stack: ExitStack, gpu) -> None:
    """Apply the patches until `stack` closes; `gpu` records calls of `synchronize`."""
    synchronize = lambda *_: gpu.record_sync("synchronize")  # noqa: E731
    foreach_types = [torch.Tensor, torch.nn.Parameter, GPUTensor]
    for target, attributes in {
        "torch": {"Generator": build_generator},
        "torch.cuda": build_cuda_functions() | {"synchronize": synchronize},
        "torch.accelerator": build_accelerator_functions() | {"synchronize": synchronize},
        "torch.utils._foreach_utils": {"_foreach_supported_types": foreach_types},
        "torch.optim.optimizer": {"_foreach_supported_types": foreach_types},
        "concurrent.futures.ThreadPoolExecutor": {"submit": build_submit(gpu)},
        "torch.autocast": {"__enter__": refuse_autocast},
        "torch.Tensor": {"pin_memory": lambda tensor, *_: tensor, "is_pinned": constant(True)},
    }.items():
        stack.enter_context(mock.patch.multiple(target, **attributes))
    # `torch.tensor(…, device="cuda")` makes a CPU tensor and moves it; `module.to` keeps its parameters, with other contents
    stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
    torch._C._set_only_lift_cpu_tensors(True)
    future = torch.__future__
    swap = future.set_swap_module_params_on_conversion
    stack.callback(swap, future.get_swap_module_params_on_conversion())
    swap(True)
    torch._C._ensureCUDADeviceGuardSet()  # as fake tensors do: without a driver, nothing selects a device
    stack.enter_context(torch.autograd.set_multithreading_enabled(False))  # there is no thread of the device


def build_cuda_functions() -> dict:
    values = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": GPU.index,
        "get_device_name": NAME,
        "get_device_capability": CAPABILITY,
        "get_device_properties": PROPERTIES,
        "mem_get_info": (MEMORY, MEMORY),
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "is_bf16_supported": True,
        "get_rng_state_all": [],
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }
    ignored = "init _lazy_init set_device empty_cache reset_peak_memory_stats manual_seed manual_seed_all set_rng_state"
    values |= dict.fromkeys([*ignored.split(), "set_rng_state_all"])
    return {name: constant(value) for name, value in values.items()}


def build_accelerator_functions() -> dict:
    values = {
        "is_available": True,
        "current_accelerator": torch.device(GPU.type),
        "device_count": 1,
        "current_device_index": GPU.index,
        "current_stream": STREAM,
        "empty_cache": None,
        "set_device_index": None,
    }
    return {name: constant(value) for name, value in values.items()}

"""The mode that runs operations of the pretended GPU, and records its syncs and uploads."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch._dynamo  # it lists torch's functions, which must not be the patched ones
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretended_gpu.operations import (
    Operation,
    check_devices,
    check_dtypes,
    check_generator,
    describe_operation,
    list_tensors,
)
from pretended_gpu.patches import enter_patches
from pretended_gpu.tensor import GPU, GPUTensor, is_gpu

HIDDEN_FRAMES = ("/torch/", "/pretended_gpu/", "<")


@dataclass(frozen=True)
class Event:
    """An operation that waits for the device or copies to it, the line that caused it, and the `phase` of the mode then."""

    operation: str
    line: str
    phase: str


class PretendedGPU(TorchDispatchMode):
    """`syncs` lists where the host waits for the device, `uploads` the copies to it; a test names the `phase` of both."""

    active: "PretendedGPU | None" = None

    def __init__(self):
        super().__init__()
        self.syncs: list[Event] = []
        self.uploads: list[Event] = []
        self.phase = ""

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    def __enter__(self):
        with ExitStack() as stack:
            enter_patches(stack, self)
            stack.callback(setattr, PretendedGPU, "active", PretendedGPU.active)
            PretendedGPU.active = self
            mode = super().__enter__()
            self.restore = stack.pop_all()
        return mode

    def __exit__(self, *error):
        super().__exit__(*error)
        self.restore.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def record_sync(self, operation: str) -> None:
        self.syncs.append(Event(operation, find_line(), self.phase))

    def record_upload(self, operation: str) -> None:
        self.uploads.append(Event(operation, find_line(), self.phase))

    def run(self, func, args: tuple, kwargs: dict):
        """One operation: on the CPU, with the results on the device of the arguments, or on the `device` asked for."""
        kwargs.pop("pin_memory", None)  # which needs a driver
        tensors = list_tensors(args if not kwargs else (*args, *kwargs.values()))
        on_gpu = any(isinstance(t, GPUTensor) for t in tensors)
        device = kwargs.get("device")
        if not on_gpu and not is_gpu(device):
            return func(*args, **kwargs)
        operation = describe_operation(func)
        if operation.is_copy:
            return self.copy(func, operation, args, kwargs)
        if on_gpu:
            self.check(operation, args, kwargs, tensors)
        check_generator(operation, kwargs.get("generator"))
        result = func(*to_host(args), **host_options(kwargs))
        if device is not None and not is_gpu(device):
            return result
        written = {id(t.host): t for t in tensors if isinstance(t, GPUTensor)} if operation.writes else {}
        return to_gpu(result, written)

    def copy(self, func, operation: Operation, args: tuple, kwargs: dict):
        """`_to_copy(source, device=…)` or `copy_(target, source)`; they wait when they copy from the device."""
        in_place = operation.name == "copy_"
        source = args[1] if in_place else args[0]
        to_device = isinstance(args[0], GPUTensor) if in_place else is_gpu(kwargs.get("device") or GPU)
        if isinstance(source, GPUTensor) and not to_device:
            self.record_sync(operation.name)
        if not isinstance(source, GPUTensor) and to_device:
            self.record_upload(operation.name)
        result = func(*to_host(args), **host_options(kwargs))
        if in_place:
            return args[0]
        return GPUTensor(result) if to_device else result

    def check(self, operation: Operation, args: tuple, kwargs: dict, tensors: list[Tensor]) -> None:
        """`RuntimeError` for what a GPU refuses; record the wait of an operation whose result the host needs."""
        if not all(isinstance(t, GPUTensor) for t in tensors):
            check_devices(operation, args, kwargs)
        if operation.one_dtype:
            check_dtypes(operation, args)
        if operation.is_indexing:
            self.record_indices(operation, args[1])
        elif operation.waits:
            self.record_sync(operation.name)

    def record_indices(self, operation: Operation, indices) -> None:
        for index in list_tensors([indices]):
            if index.dtype in (torch.bool, torch.uint8):
                self.record_sync(f"{operation.name} by a mask")
            elif not isinstance(index, GPUTensor):
                self.record_upload(f"{operation.name} by an index on the CPU")


def to_host(value):
    """Arguments with the CPU tensors of those on the GPU."""
    if isinstance(value, GPUTensor):
        return value.host
    return type(value)(map(to_host, value)) if isinstance(value, list | tuple) else value


def to_gpu(value, written: dict[int, GPUTensor]):
    """Results on the GPU; an argument that was written to is returned itself."""
    if isinstance(value, Tensor):
        return written.get(id(value)) if id(value) in written else GPUTensor(value)
    return type(value)(to_gpu(item, written) for item in value) if isinstance(value, list | tuple) else value


def host_options(kwargs: dict) -> dict:
    """Keyword arguments for the CPU."""
    options = {name: to_host(value) for name, value in kwargs.items()}
    if is_gpu(options.get("device")):
        options["device"] = torch.device("cpu")
    return options


def find_line() -> str:
    """The innermost `file:line function` outside torch, preceded by the innermost outside site-packages if that is another."""
    frame, lines = sys._getframe(), []
    while frame is not None:
        name = frame.f_code.co_filename
        if not any(part in name for part in HIDDEN_FRAMES):
            lines.append(f"{name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    own = next((line for line in lines if "/site-packages/" not in line), lines[0])
    return " → ".join(map(shorten, dict.fromkeys([own, lines[0]])))


def shorten(line: str) -> str:
    """A path below site-packages or the repository."""
    for folder in ("/site-packages/", "/sdft/", "/tests/"):
        if folder in line:
            return line.rpartition(folder)[2]
    return line

"""Fake tensors: shape, dtype and device without data, and a count of the bytes that they would occupy.

Networks run on them forward and backward, on torch's meta device: no memory of that size is allocated and no random number is
drawn. They do what torch's FakeTensorMode does, which is also private, faster and with a count of memory.
"""

import copy
import weakref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class FakeTensor(Tensor):
    """A meta tensor that reports `device`, so that attention selects the kernels of that device."""

    @staticmethod
    def __new__(cls, meta: Tensor, device: torch.device):
        layout = {"strides": meta.stride(), "storage_offset": meta.storage_offset(), "dtype": meta.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, meta.size(), **layout, device=device)
        tensor.meta = meta
        return tensor

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.meta.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: fake tensors exist only inside FakeTensorMode")


class StorageCounter(TorchDispatchMode):
    """Count in `current_bytes` and `peak_bytes` the storages that operations in the mode make, while they are alive."""

    def __init__(self):
        super().__init__()
        self.current_bytes, self.peak_bytes, self.alive = 0, 0, {}

    def count_storage(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        if (key := id(storage)) in self.alive:
            return
        size = storage.nbytes()

        def release(_) -> None:
            self.current_bytes -= size
            del self.alive[key]

        self.current_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)
        self.alive[key] = weakref.ref(storage, release)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {id(tensor.untyped_storage()) for tensor in list_tensors([args, [*(kwargs or {}).values()]])}
        output = func(*args, **kwargs or {})
        for tensor in list_tensors(output):
            if id(tensor.untyped_storage()) not in inputs:  # not a view
                self.count_storage(tensor)
        return output


class FakeTensorMode(StorageCounter):
    """Run operations on fake tensors, and count their storages."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # skips torch.compile's guards, which take 0.1 ms per call

    def empty_like(self, tensor: Tensor, shape=None, dtype: torch.dtype | None = None) -> FakeTensor:
        """A fake tensor with the shape, dtype and `requires_grad` of `tensor` (or the given ones). Call it inside the mode."""
        options = {"dtype": dtype or tensor.dtype, "device": self.device}
        if shape is None:
            fake = torch.empty_strided(tensor.size(), tensor.stride(), **options)
        else:
            fake = torch.empty(shape, **options)
        is_parameter = isinstance(tensor, nn.Parameter)
        return nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake.requires_grad_(tensor.requires_grad)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return args[0].device
        if func.name() == "aten::_local_scalar_dense" and args[0].dtype is torch.bool:
            return (
                True  # a branch on data, such as peft's on a random number that drops a whole layer: compute the layer
            )
        kwargs = {name: to_meta(value) for name, value in (kwargs or {}).items()}
        if "device" in kwargs:
            kwargs["device"] = "meta"
        inputs = {id(arg.meta): arg for arg in args if isinstance(arg, FakeTensor)}
        return self.wrap_output(func(*[to_meta(arg) for arg in args], **kwargs), inputs)

    def wrap_output(self, value, inputs: dict):
        """Fake tensors for the meta tensors in `value`; in-place operations return their input."""
        if isinstance(value, Tensor):
            if id(value) in inputs:
                return inputs[id(value)]
            self.count_storage(value)
            return FakeTensor(value, self.device)
        if isinstance(value, list | tuple):
            return type(value)(self.wrap_output(part, inputs) for part in value)
        return value


def list_tensors(value) -> list[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in list_tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def to_meta(value):
    """The meta tensors of fake ones, also in lists; ordinary tensors, such as constants, lose their data."""
    if isinstance(value, FakeTensor):
        return value.meta
    if isinstance(value, Tensor):
        return value.to("meta")
    return type(value)(map(to_meta, value)) if isinstance(value, list | tuple) else value


def copy_with_tensors(module: nn.Module, replaced: dict[Tensor, Tensor], shared: list) -> nn.Module:
    """A deep copy of a module with tensors replaced; the objects in `shared` are not copied."""
    memo = {id(tensor): new for tensor, new in replaced.items()} | {id(value): value for value in shared}
    return copy.deepcopy(module, memo)

"""Tensors with a shape, a type and a device but no content, and a count of the bytes that they would take.

Networks run on them as they would run, forward and backward, on torch's meta device underneath: nothing of their size is
allocated and no random number is drawn. Fake tensors of torch do the same; these take a quarter of the time, and count.
"""

import copy
import weakref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class FakeTensor(Tensor):
    """What claims to lie on `device`, so that autocast and attention choose as they would there."""

    @staticmethod
    def __new__(cls, meta: Tensor, device: torch.device):
        shape = {"strides": meta.stride(), "storage_offset": meta.storage_offset(), "dtype": meta.dtype}
        made = Tensor._make_wrapper_subclass(cls, meta.size(), **shape, device=device)
        made.meta = meta
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: ghosts live inside Ghosts alone")


class FakeTensorMode(TorchDispatchMode):
    """`now` and `most` are the bytes of all storages that live, and lived at once."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.current_bytes, self.peak_bytes, self.alive = device, 0, 0, {}
        self.results: dict[tuple, Tensor | tuple | None] = {}  # of operations, by what they were given

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # or every call would pass through torch.compile's guards, a tenth of a millisecond each

    def empty_like(self, tensor: Tensor, shape=None, dtype: torch.dtype | None = None) -> FakeTensor:
        """Inside: one with the shape, type and part in learning of `tensor`, or with others."""
        about = {"dtype": dtype or tensor.dtype, "device": self.device}
        if shape is None:
            made = torch.empty_strided(tensor.size(), tensor.stride(), **about)
        else:
            made = torch.empty(shape, **about)
        made._is_param = isinstance(tensor, nn.Parameter)
        return made.requires_grad_(tensor.requires_grad)

    def count(self, meta: Tensor) -> None:
        storage = meta.untyped_storage()
        if (key := storage._cdata) in self.alive:
            return
        size = storage.nbytes()

        def gone(_) -> None:
            self.current_bytes -= size
            del self.alive[key]

        self.current_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)
        self.alive[key] = weakref.ref(storage, gone)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return args[0].device
        kwargs = {name: to_meta(value) for name, value in (kwargs or {}).items()}
        if "device" in kwargs:
            kwargs["device"] = "meta"
        known = {
            id(arg.meta): arg for arg in args if isinstance(arg, FakeTensor)
        }  # in-place operations return what they got
        return self.outer(self.result(func, [to_meta(arg) for arg in args], kwargs), known)

    def result(self, func, args: list, kwargs: dict):
        """Of an operation on meta tensors; networks repeat themselves, and a shape is found much faster than computed."""
        returns = func._schema.returns
        if func._schema.is_mutable or not returns or any(told.alias_info for told in returns):
            return func(*args, **kwargs)
        key = (func, describe_shapes(args), describe_shapes([*kwargs.items()]))
        if key not in self.results:
            made = func(*args, **kwargs)
            self.results[key] = empty_meta_like(made)  # the one that is handed out counts as long as it lives
            return made
        return empty_meta_like(self.results[key])

    def outer(self, value, known: dict):
        if isinstance(value, Tensor):
            if id(value) in known:
                return known[id(value)]
            self.count(value)
            return FakeTensor(value, self.device)
        if isinstance(value, list | tuple):
            return type(value)(self.outer(part, known) for part in value)
        return value


def to_meta(value):
    """The meta tensors of ghosts, also in lists; plain tensors, such as constants, without their content."""
    if isinstance(value, FakeTensor):
        return value.meta
    if isinstance(value, Tensor):
        return value.to("meta")
    return type(value)(map(to_meta, value)) if isinstance(value, list | tuple) else value


def describe_shapes(value):
    """What a result's shape depends on."""
    if isinstance(value, Tensor):
        return Tensor, value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(describe_shapes, value))
    return type(value), value


def empty_meta_like(made):
    """New meta tensors like these."""
    if isinstance(made, Tensor):
        return torch.empty_strided(made.size(), made.stride(), dtype=made.dtype, device="meta")
    return type(made)(map(empty_meta_like, made)) if isinstance(made, list | tuple) else made


def copy_with_tensors(module: nn.Module, replaced: dict[Tensor, Tensor], shared: list) -> nn.Module:
    """A copy of a module with other tensors, which shares what is in `shared` with it."""
    memo = {id(tensor): other for tensor, other in replaced.items()} | {id(thing): thing for thing in shared}
    return copy.deepcopy(module, memo)

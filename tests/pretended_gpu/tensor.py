"""Tensors of the pretended GPU."""

import torch
from torch import Tensor

GPU = torch.device("cuda", 0)
DEVICE_IN_CPP = torch.device(
    "lazy", 0
)  # a type that nothing uses: autograd runs it in the calling thread, without a driver


def is_gpu(device) -> bool:
    """Whether a device, or its name, is the pretended GPU."""
    return device is not None and torch.device(device).type in (GPU.type, DEVICE_IN_CPP.type)


class GPUTensor(Tensor):
    """A tensor on the pretended GPU; its values are those of the CPU tensor `host`."""

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor):
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, host.size(), **layout, device=DEVICE_IN_CPP)
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        from pretended_gpu.gpu import PretendedGPU

        return PretendedGPU.active.run(func, args, kwargs or {})  # in a thread without the mode

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, GPUTensor):  # torch lets data move a parameter
            torch.utils.swap_tensors(self, torch.nn.Parameter(other.detach(), requires_grad=self.requires_grad))
            return
        Tensor.data.__set__(self, other)
        self.host = other.host

    def get_device(self) -> int:
        return GPU.index

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self):
        return self.host.untyped_storage()

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError(f"can't convert {GPU} device type tensor to numpy; use Tensor.cpu() first")

    def __repr__(self, **_) -> str:
        return f"{self.cpu()!r} on {GPU}"

    def __deepcopy__(self, memo: dict) -> "GPUTensor":
        if id(self) not in memo:
            copy = GPUTensor(self.host.detach().clone()).requires_grad_(self.requires_grad)
            copy._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.detach().cpu().__reduce_ex__(protocol)

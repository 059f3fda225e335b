"""What a GPU checks before an operation, and which operations wait for it."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pretended_gpu.generator import is_on_gpu
from pretended_gpu.tensor import GPU, GPUTensor

COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}
SYNC_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
ONE_DTYPE = {
    "native_layer_norm": (0, 2, 3),
    "native_group_norm": (0, 1, 2),
}  # arguments; the CPU mixes bf16 and fp32 here


@dataclass(frozen=True)
class Operation:
    """Facts of an operator's schema."""

    name: str
    is_copy: bool
    is_indexing: bool
    waits: bool
    writes: bool  # into an argument
    one_dtype: tuple[int, ...]  # positions of arguments whose dtypes must be equal


@cache
def describe_operation(func) -> Operation:
    name = func._schema.name.removeprefix("aten::")
    return Operation(
        name,
        is_copy=name in COPIES,
        is_indexing=name in INDEXING,
        waits=bool(SYNC_TAGS & set(func.tags)) or name == "equal",
        writes=func._schema.is_mutable,
        one_dtype=(0, 1, 2, 3) if name.startswith("_fused_adam") else ONE_DTYPE.get(name, ()),
    )


def list_tensors(arguments) -> list[Tensor]:
    """The tensors among arguments, and in lists of them."""
    tensors = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif isinstance(argument, list | tuple):
            tensors += [item for item in argument if isinstance(item, Tensor)]
    return tensors


def check_devices(operation: Operation, args: tuple, kwargs: dict) -> None:
    """`RuntimeError` for tensors on the CPU, except indices and scalars `[]` outside lists, which kernels take."""
    arguments = [*args, *kwargs.values()]
    if operation.is_indexing:
        del arguments[1]
    mixed = [
        tensor
        for argument in arguments
        for tensor in list_tensors([argument])
        if not isinstance(tensor, GPUTensor) and (tensor.ndim or tensor is not argument)
    ]
    if mixed:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in mixed)
        raise RuntimeError(
            f"{operation.name}: expected all tensors to be on the same device, but found {GPU} and {shapes} on cpu"
        )


def check_dtypes(operation: Operation, args: tuple) -> None:
    """`RuntimeError` for dtypes that the kernels of a CPU mix, and those of a GPU do not."""
    dtypes = {tensor.dtype for tensor in list_tensors([args[i] for i in operation.one_dtype])}
    if len(dtypes) > 1:
        raise RuntimeError(f"{operation.name}: expected one dtype but found {', '.join(sorted(map(str, dtypes)))}")


def check_generator(operation: Operation, generator: torch.Generator | None) -> None:
    """`RuntimeError` for a generator of the CPU."""
    if generator is not None and not is_on_gpu(generator):
        raise RuntimeError(
            f"{operation.name}: expected a {GPU.type!r} device type for generator but found {generator.device.type!r}"
        )

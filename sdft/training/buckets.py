"""Buckets of weights that an optimizer updates together."""

from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sdft.training.master_weights import copy_all

MAX_ELEMENTS = 2**21  # of a bucket: 8 MiB per fp32 buffer


@dataclass(eq=False)
class Bucket:
    """Weights, or rows of a large one, that `optimizer` updates together with the settings of `group`."""

    index: int
    group: dict
    slices: list[tuple[nn.Parameter, slice | EllipsisType]]
    optimizer: Optimizer | None
    num_gradients: int = 0  # that are complete
    is_updated: bool = False  # in this step


def split_group(group: dict, elementwise: bool) -> list[list[tuple[nn.Parameter, slice | EllipsisType]]]:
    """Slices of the weights of a group, for buckets of up to `MAX_ELEMENTS`.

    A larger weight has a bucket of its own, or one per range of rows if the optimizer is `elementwise`.
    """
    buckets, free = [], 0
    for weight in group["params"]:
        size = weight.numel()
        if elementwise and size > MAX_ELEMENTS and len(weight) > 1:
            rows = max(1, MAX_ELEMENTS * len(weight) // size)
            buckets += [[(weight, slice(start, start + rows))] for start in range(0, len(weight), rows)]
            free = 0
            continue
        if size > free:
            buckets.append([])
            free = MAX_ELEMENTS
        buckets[-1].append((weight, ...))
        free -= size
    return buckets


def view_as_matrix(tensor: Tensor) -> Tensor:
    """A weight of a convolution as a matrix, of which Adafactor keeps the mean squares of rows and columns."""
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


def copy_to_buffer(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A flat fp32 copy of tensors, and views of it with their shapes."""
    sizes = [tensor.numel() for tensor in tensors]
    buffer = torch.empty(sum(sizes), device=tensors[0].device)
    views = [part.view(tensor.shape) for part, tensor in zip(buffer.split(sizes), tensors, strict=True)]
    copy_all(views, tensors)
    return buffer, views

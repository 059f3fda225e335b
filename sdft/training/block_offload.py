"""Block offload: frozen weights of a share of the UNet's blocks stay in pinned CPU memory and are copied to the device for use.

The weights of one block at a time are on the device, in one buffer per dtype, which is copied at once. They are never copied
back, as they are constant. Without gradient checkpointing the autograd graph would keep every copy until the backward pass, so
it saves their places in the buffer instead, and the backward pass copies the block again. Results are bit-equal.

Meanwhile the weights are plain attributes of their layers, so that `module.to(device)` does not move them, nor DDP synchronize
them.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sdft.training.compile import COMPILED_BLOCKS, apply_memory_format
from sdft.training.gradient_checkpointing import load_saved

ALIGNMENT = 128  # elements: at least the 256 bytes that kernels may require
MAX_BUFFER_BYTES = 2**30  # of pinned memory, whose allocator rounds sizes up to powers of two


@dataclass
class Weight:
    """A frozen weight: its layer and name, and its place in the block's buffer of its dtype."""

    layer: nn.Module
    name: str
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def view(self, buffers: dict[torch.dtype, Tensor]) -> Tensor:
        buffer = buffers[self.dtype]
        return buffer.as_strided(self.shape, self.stride, buffer.storage_offset() + self.offset)


@dataclass
class DeviceBuffers:
    """The buffers of the block whose weights are on the device; loading another block frees them."""

    device: torch.device
    buffers: dict[torch.dtype, Tensor] = field(default_factory=dict)
    block: "OffloadedBlock | None" = None

    def load(self, block: "OffloadedBlock") -> dict[torch.dtype, Tensor]:
        if self.block is not block:
            self.clear()
            options = {"non_blocking": True, "copy": True}
            self.buffers = {dtype: host.to(self.device, **options) for dtype, host in block.host_buffers.items()}
            self.block = block
        return self.buffers

    def clear(self) -> None:
        self.buffers, self.block = {}, None


class OffloadedBlock:
    """Replaces the `forward` of a block; `host_buffers` hold its frozen weights."""

    def __init__(self, block: nn.Module, shared: DeviceBuffers):
        self.block, self.shared, self.eager = block, shared, type(block).forward
        self.weights, self.host_buffers, self.host_weights = list_weights(block), {}, []

    def set_host_buffers(self, buffers: dict[torch.dtype, Tensor]) -> None:
        """Copy the weights into the buffers and take them out of the module's parameters."""
        self.host_buffers = buffers
        for weight in self.weights:
            parameter = getattr(weight.layer, weight.name)
            weight.view(buffers).copy_(parameter.detach())
            delattr(weight.layer, weight.name)
        self.host_weights = [weight.view(buffers) for weight in self.weights]
        self.use_weights(self.host_weights)
        self.block.forward = self.forward

    def restore_parameters(self) -> None:
        """Make the weights parameters again, on the CPU."""
        self.use_weights([nn.Parameter(tensor, requires_grad=False) for tensor in self.host_weights])
        vars(self.block).pop("forward")

    def list_host_tensors(self) -> list[Tensor]:
        return [*self.host_buffers.values(), *self.host_weights]

    def use_weights(self, tensors: list[Tensor]) -> None:
        for weight, tensor in zip(self.weights, tensors, strict=True):
            setattr(weight.layer, weight.name, tensor)

    def forward(self, *args, **kwargs):
        buffers = self.shared.load(self)
        self.use_weights([weight.view(buffers) for weight in self.weights])
        is_recomputed = vars(self.block).get("is_checkpointed", False)
        try:
            # hooks inside a checkpoint would keep what it recomputes
            with nullcontext() if is_recomputed else saved_tensors_hooks(self.pack, load_saved):
                return self.eager(self.block, *args, **kwargs)
        finally:
            self.use_weights(self.host_weights)
            self.shared.clear()

    def pack(self, tensor: Tensor):
        """The tensor, or for one in the block's buffers a function that returns it from a new copy of them."""
        storage = tensor.untyped_storage()
        for dtype, buffer in self.shared.buffers.items():
            if storage is buffer.untyped_storage():
                layout = tensor.size(), tensor.stride(), tensor.storage_offset()
                return lambda: self.shared.load(self)[dtype].as_strided(*layout)
        return tensor


def list_weights(block: nn.Module) -> list[Weight]:
    """The frozen parameters of a block, laid out in buffers."""
    weights, ends = [], {}
    for layer in block.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                dtype, offset = parameter.dtype, ends.get(parameter.dtype, 0)
                weights.append(Weight(layer, name, dtype, parameter.shape, parameter.stride(), offset))
                ends[dtype] = offset + -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    return weights


def offload_frozen_weights(module, share: float, device: torch.device) -> None:
    """Offload blocks of a module's UNet, with `share` of their weights, before it is moved to the device."""
    if share:
        unet = module.model.unet
        apply_memory_format(unet, module.model.compute_dtype, device)
        module.offloaded_blocks = offload_blocks(unet, share, device)


def offload_blocks(unet: nn.Module, share: float, device: torch.device) -> list[OffloadedBlock]:
    """Offload blocks with `share` of the blocks' frozen weights, spread over the network; its parameters are on the CPU."""
    shared, selected, total, offloaded = DeviceBuffers(device), [], 0, 0
    for module in unet.modules():
        if type(module).__name__ not in COMPILED_BLOCKS:
            continue
        block = OffloadedBlock(module, shared)
        total += (size := sum(count_buffer_bytes(block).values()))
        if offloaded + size / 2 <= share * total:
            selected.append(block)
            offloaded += size
    for group in group_by_size(selected):
        allocate_host_buffers(group, pin_memory=device.type == "cuda")
    return selected


def count_buffer_bytes(block: OffloadedBlock) -> dict[torch.dtype, int]:
    sizes: dict[torch.dtype, int] = {}
    for weight in block.weights:
        end = weight.offset + -(-weight.shape.numel() // ALIGNMENT) * ALIGNMENT
        sizes[weight.dtype] = max(sizes.get(weight.dtype, 0), end * weight.dtype.itemsize)
    return sizes


def group_by_size(blocks: list[OffloadedBlock]) -> Iterator[list[OffloadedBlock]]:
    """Consecutive blocks that share an allocation of at most `MAX_BUFFER_BYTES`, or a single larger one."""
    group, size = [], 0
    for block in blocks:
        block_size = sum(count_buffer_bytes(block).values())
        if group and size + block_size > MAX_BUFFER_BYTES:
            yield group
            group, size = [], 0
        group.append(block)
        size += block_size
    if group:
        yield group


def allocate_host_buffers(blocks: list[OffloadedBlock], pin_memory: bool) -> None:
    """Move the weights of the blocks to one allocation of CPU memory; `ValueError` if so much cannot be pinned."""
    sizes = [count_buffer_bytes(block) for block in blocks]
    place = next(block.weights[0].layer for block in blocks if block.weights)
    device = getattr(place, blocks[0].weights[0].name).device  # of a model without weights: meta
    total = sum(sum(size.values()) for size in sizes)
    try:
        memory = torch.empty(total, dtype=torch.uint8, device=device, pin_memory=pin_memory and device.type == "cpu")
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"offload_blocks: {total / 2**30:.1f} GB of CPU memory cannot be pinned ({reason}); choose less"
        ) from error
    start = 0
    for block, size in zip(blocks, sizes, strict=True):
        buffers = {}
        for dtype, length in size.items():
            buffers[dtype] = memory[start : start + length].view(dtype)
            start += length
        block.set_host_buffers(buffers)

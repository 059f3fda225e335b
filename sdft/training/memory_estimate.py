"""Estimate peak device memory by running one training step on fake tensors.

The module's loss and backward pass run on fake weights and a fake batch (`sdft.training.fake_tensors`), and every storage is
counted while it is alive: saved activations, recomputed activations and temporaries all follow from the code that will run.
Attention is counted as its fused kernels store it: q, k, v, the output and one number per row, without the attention matrix. Not
counted: cuDNN and cuBLAS workspaces, allocator rounding and fragmentation, temporaries of an optimizer step without
buckets, and the CUDA context (about 0.5 GB).
"""

import os
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdft.losses.diffusion import weight_losses
from sdft.training.bucketed_optimizer import get_bucket_constructor, is_fused_backward
from sdft.training.buckets import view_as_matrix
from sdft.training.compile import remove_compiled_forwards
from sdft.training.fake_tensors import FakeTensorMode, copy_with_tensors
from sdft.training.gradient_checkpointing import enable_gradient_checkpointing
from sdft.training.module import DiffusionModule
from sdft.training.optimizers import build_optimizer
from sdft.training.step_spec import StepSpec
from sdft.training.update_memory import count_updates, measure_update_bytes

GB = 2**30
MEMINFO = "/proc/meminfo"  # Linux only
# small shapes with distinct sides, and with more than the 4096 elements from which 8-bit optimizers quantize
PROBE_SHAPES = {0: (), 1: (4099,), 2: (61, 71), 3: (13, 17, 23), 4: (7, 11, 5, 13)}


@dataclass
class MemoryEstimate:
    """Bytes on the device. `activations` (of a step) and `sampling` never coexist, so the total has the larger one."""

    weights: int
    gradients: int = 0
    optimizer_states: int = 0
    ema: int = 0
    activations: int = 0
    sampling: int = 0

    @property
    def total(self) -> int:
        persistent = self.weights + self.gradients + self.optimizer_states + self.ema
        return persistent + max(self.activations, self.sampling)


def estimate_memory(module: DiffusionModule, step: StepSpec) -> MemoryEstimate:
    """Estimate the memory of a module whose `offloaded_parts` are set; the module is not changed."""
    mode, update_bytes = FakeTensorMode(step.device), measure_update_bytes(module)
    with mode:
        fake_module = build_fake_module(module, step, mode)
        weights = mode.current_bytes - sum(map(count_bytes, fake_module.get_trainable_parameters().values()))
        activations = measure_activations(fake_module, step, mode, update_bytes)
        decoding = measure_decoding(fake_module, step, mode)
    trainable_bytes = sum(map(count_bytes, module.get_trainable_parameters().values()))
    offloaded = count_offloaded_bytes(fake_module) if step.device.type != "cpu" else 0
    shapes = list_state_shapes(module)
    optimizer_states = estimate_optimizer_state_bytes(step.optimizer or module.optimizer, shapes, step.device)
    frees_gradients = is_fused_backward(module.optimizer)
    return MemoryEstimate(
        weights=weights - offloaded + trainable_bytes // step.num_shards,
        gradients=0 if frees_gradients else trainable_bytes * (1 + step.has_ddp_buckets) // step.num_shards,
        optimizer_states=optimizer_states // step.num_shards,
        ema=step.ema * sum(4 * p.numel() for p in module.get_trainable_parameters().values()) // step.num_shards,
        activations=activations,
        sampling=offloaded + decoding if step.num_images else 0,
    )


def build_fake_module(module: DiffusionModule, step: StepSpec, mode: FakeTensorMode) -> DiffusionModule:
    """A copy of the module with fake weights and the settings of `step`."""
    model, masters = module.model, module.masters
    cast = {p: model.compute_dtype for part in model.parts.values() for p in part.parameters()}  # FSDP's are in fp32
    replaced = {p: mode.empty_like(p, dtype=cast.get(p)) for p in module.parameters()}
    replaced |= {buffer: mode.empty_like(buffer) for buffer in module.buffers()}
    replaced |= {p: mode.empty_like(p) for p in masters.trained.values()}
    shared = [module.method, module.optimizer, module.schedule, *model.tokenizers, model.scheduler]
    shared += masters.frozen.values()
    owners = [vars(owner) for owner in (module, module.smoothness) if owner]
    shared_tensors = [value for owner in owners for value in owner.values() if isinstance(value, Tensor)]
    shared_tensors += [tensor for block in module.offloaded_blocks for tensor in block.list_host_tensors()]
    fake_module = copy_with_tensors(module, replaced, [*shared, *shared_tensors])
    if not module.offloaded_blocks:  # which are never compiled
        remove_compiled_forwards(fake_module)
    if step.gradient_checkpointing:
        enable_gradient_checkpointing(fake_module.model, step.gradient_checkpointing == "offload")
    if step.cached:
        is_text_cached = not any(map(has_trainable_parameters, model.text_encoders.values()))
        fake_module.offloaded_parts = ["vae", *(model.text_encoders if is_text_cached else [])]
    return fake_module


def has_trainable_parameters(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def count_offloaded_bytes(fake_module: DiffusionModule) -> int:
    parts = [getattr(fake_module.model, part) for part in fake_module.offloaded_parts]
    return sum(count_bytes(tensor) for part in parts for tensor in [*part.parameters(), *part.buffers()])


def measure_activations(fake_module: DiffusionModule, step: StepSpec, mode: FakeTensorMode, update_bytes: float) -> int:
    """Peak bytes of a step in addition to weights and gradients; gradients that are not freed exist from the second step on."""
    updates = count_updates(fake_module, mode, update_bytes) if update_bytes else None
    sample = build_fake_sample(fake_module, step).items()
    batch = {name: mode.empty_like(tensor, step.batch_shape(tensor)) for name, tensor in sample}
    del sample  # may hold a fake tensor
    trainable = fake_module.get_trainable_parameters().values()
    for weight in () if is_fused_backward(fake_module.optimizer) else trainable:
        weight.grad = torch.empty_like(weight)
    start = mode.current_bytes - sum(map(count_bytes, batch.values()))
    mode.peak_bytes = mode.current_bytes
    loss = weight_losses(fake_module.compute_losses(batch), batch).mean()
    if step.gradient_accumulation_steps == 1:
        for weight in trainable:
            weight.grad = None  # the trainer clears gradients between forward and backward
    loss.backward()
    del loss
    fake_module.masters.collect_gradients()
    if updates:
        updates.update_remaining()
    for weight in trainable:
        weight.grad = None
    return mode.peak_bytes - start


def build_fake_sample(fake_module: DiffusionModule, step: StepSpec) -> dict[str, Tensor]:
    """The sample of `step`; with caches enabled, their tensors replace pixels and token ids."""
    sample, latent = dict(step.sample), step.sample["posterior"]
    if step.cached and "pixels" in sample:
        del sample["pixels"]
        sample |= {"mean": latent, "std": latent}
    if step.cached and "ids" in sample and fake_module.model.text_encoders.keys() <= set(fake_module.offloaded_parts):
        shapes = fake_module.model.text_shapes(len(sample.pop("ids")))
        sample |= {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return sample


@torch.no_grad()
def measure_decoding(fake_module: DiffusionModule, step: StepSpec, mode: FakeTensorMode) -> int:
    """Peak bytes of decoding a batch of images, which exceed those of the UNet's predictions."""
    if not step.num_images:
        return 0
    start, model = mode.current_bytes, fake_module.model
    mode.peak_bytes = start
    shape = model.batch_shape(step.num_images, (step.resolution, step.resolution))
    model.decode(mode.empty_like(torch.empty(0), shape))
    return mode.peak_bytes - start


def count_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def list_state_shapes(module: DiffusionModule) -> list[tuple[int, ...]]:
    """Shapes of the trainable parameters as the optimizer sees them."""
    is_bucketed = get_bucket_constructor(module.optimizer) is not module.optimizer
    parameters = [p.detach() for p in module.get_trainable_parameters().values()]
    return [tuple((view_as_matrix(p) if is_bucketed else p).shape) for p in parameters]


def estimate_optimizer_state_bytes(optimizer, shapes: list[tuple[int, ...]], device: torch.device) -> int:
    """Bytes of an optimizer's states for parameters of these shapes, scaled up from one step on small parameters."""
    optimizer = get_bucket_constructor(optimizer)
    probes = {ndim: probe_optimizer_state(optimizer, ndim, device) for ndim in {len(shape) for shape in shapes}}
    return sum(
        count * sum(estimate_state_tensor_bytes(shape, *state) for state in probes[len(shape)])
        for shape, count in Counter(shapes).items()
    )


def estimate_state_tensor_bytes(
    shape: tuple[int, ...], state_shape: tuple, probe_shape: tuple[int, ...], element_size: int
) -> int:
    """Bytes of a state for a parameter of `shape`, whose state for `probe_shape` has `state_shape`.

    Sides of the state that are sides of the parameter grow with them; otherwise its size is proportional to the parameter's.
    """
    if all(side == 1 or side in probe_shape for side in state_shape):
        sides = [1 if side == 1 else shape[probe_shape.index(side)] for side in state_shape]
        return element_size * torch.Size(sides).numel()
    return round(
        element_size * torch.Size(state_shape).numel() * torch.Size(shape).numel() / torch.Size(probe_shape).numel()
    )


@torch.enable_grad()
def probe_optimizer_state(optimizer, ndim: int, device: torch.device) -> list[tuple]:
    """(shape, parameter shape, element size) of every state tensor of a parameter with `ndim` sides."""
    probe_shape = PROBE_SHAPES[ndim]
    first, second = (nn.Parameter(torch.ones(probe_shape, device=device)) for _ in range(2))
    probe = build_optimizer(optimizer, [{"params": [first, second], "lr": 1e-3, "name": "probe"}])
    for parameter in (first, second):
        parameter.grad = torch.full_like(parameter, 1e-3)
    if hasattr(probe, "train"):
        probe.train()
    probe.step()
    shared = {id(value) for value in probe.state[second].values()}  # tables, whose size is constant
    states = [v for v in probe.state[first].values() if isinstance(v, Tensor) and id(v) not in shared]
    return [(tuple(v.shape), probe_shape, v.element_size()) for v in states if v.untyped_storage().nbytes()]


def get_free_and_total_memory(device: torch.device, weight_bytes: int) -> tuple[int, int] | None:
    """Bytes available to this process, with what it already holds, and the device's total; None where unknown.

    On a CPU it holds `weight_bytes`; libraries are not counted.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device), total
    if device.type != "cpu" or not os.path.exists(MEMINFO):
        return None
    with open(MEMINFO) as file:
        meminfo = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    return meminfo["MemAvailable"] + weight_bytes, meminfo["MemTotal"]


def format_bytes(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.1 * GB else f"{size / 2**20:.0f} MB"

"""How much memory of the device training takes, found before the first step by taking a step without content.

The module's own loss and its backward run on ghosts of the weights and of a batch (`sdft.training.fake_tensors`), and every storage counts as
long as it lives: activations saved for backward, the copies that autocast makes, what checkpointing computes again and what only
passes by all follow from the code that will run, and from no table. Attention counts as its fused kernels keep it: q, k, v, the
output and one number a row, not the attention matrix. Not counted: the workspaces of cuDNN and cuBLAS, what an allocator rounds
up and leaves free in between, what an optimizer needs in passing, and the CUDA context (about 0.5 GB).
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdft.training.fake_tensors import FakeTensorMode, copy_with_tensors
from sdft.training.module import DiffusionModule, enable_gradient_checkpointing

GB = 2**30
MEMINFO = "/proc/meminfo"  # of Linux
# small, with sides that are told apart, and over the 4096 numbers from which 8-bit optimizers keep 8 bits
PROBE_SHAPES = {0: (), 1: (4099,), 2: (61, 71), 3: (13, 17, 23), 4: (7, 11, 5, 13)}


@dataclass
class MemoryEstimate:
    """Bytes on the device. `activations` and `sampling` take turns: what a step, or drawing pictures, holds beside the rest."""

    weights: int
    gradients: int = 0
    states: int = 0
    average: int = 0
    activations: int = 0
    sampling: int = 0

    @property
    def total(self) -> int:
        kept = self.weights + self.gradients + self.states + self.average
        return kept + max(self.activations, self.sampling)


@dataclass
class StepSpec:
    """What a step's memory depends on, beside the module: `sample` is a batch of one, of the run's largest pictures.

    `spread` is how many processes share what learns, its gradients and states; in `buckets` gradients are kept once more, to
    be sent to others. `pictures` of `pixels` a side are drawn at once. The other words change the run: see `sdft.training.oom_advice`.
    """

    sample: dict[str, Tensor]
    batch_size: int
    accumulate: int
    device: torch.device
    ema: bool = False
    num_shards: int = 1
    has_ddp_buckets: bool = False
    num_images: int = 0
    pixels: int = 0
    scale: float = 1.0  # of the sides of what is learned from
    checkpointing: bool = False
    compute_dtype: torch.dtype | None = None
    cached: bool = False
    optimizer: Callable | None = None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Their shape in a batch."""
        return self.shape(self.sample["noise"])

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        count, *sides = tensor.shape
        if len(sides) == 3 and sides[-1] > 1:
            sides[1:] = [max(1, round(side * self.scale)) for side in sides[1:]]
        return (count * self.batch_size, *sides)


def estimate_memory(module: DiffusionModule, step: StepSpec) -> MemoryEstimate:
    """Of a module whose parts that rest are known, and which is not touched."""
    ghosts = FakeTensorMode(step.device)
    with ghosts:
        other = build_fake_module(module, step, ghosts)
        all_weights, learned = ghosts.current_bytes, sum(map(count_bytes, other.get_trainable_parameters().values()))
        activations = measure_activations(other, step, ghosts)
        drawing = measure_decoding(other, step, ghosts)
    resting = count_offloaded_bytes(other, step) if step.device.type != "cpu" else 0
    shapes = [tuple(p.shape) for p in other.get_trainable_parameters().values()]
    return MemoryEstimate(
        weights=all_weights - resting - learned + learned // step.num_shards,
        gradients=learned * (1 + step.has_ddp_buckets) // step.num_shards,
        states=estimate_optimizer_state_bytes(step.optimizer or module.optimizer, shapes, step.device)
        // step.num_shards,
        average=step.ema * learned // step.num_shards,
        activations=activations,
        sampling=resting + drawing if step.num_images else 0,
    )


def build_fake_module(module: DiffusionModule, step: StepSpec, ghosts: FakeTensorMode) -> DiffusionModule:
    """The module with ghosts for weights, and the words of `step`."""
    model = module.model
    cast = step.compute_dtype if module.method.output_kind != "pipeline" else None
    frozen = {p for part in model.parts.values() for p in part.parameters() if not p.requires_grad}
    replaced = {p: ghosts.empty_like(p, dtype=cast if p in frozen else None) for p in module.parameters()}
    replaced |= {buffer: ghosts.empty_like(buffer) for buffer in module.buffers()}
    alone = [module.method, module.optimizer, module.schedule, module._trainer, model.tokenizer, model.scheduler]
    owners = [vars(owner) for owner in (module, module.smoothness) if owner]
    measured = [value for owner in owners for value in owner.values() if isinstance(value, Tensor)]
    other = copy_with_tensors(module, replaced, [*alone, *measured])
    other.model.compute_dtype = step.compute_dtype or model.compute_dtype
    if step.checkpointing:
        enable_gradient_checkpointing(other.model)
    if step.cached:
        other.offloaded_parts = ["vae", *([] if has_trainable_parameters(model.text_encoder) else ["text_encoder"])]
    return other


def has_trainable_parameters(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def count_offloaded_bytes(other: DiffusionModule, step: StepSpec) -> int:
    parts = [getattr(other.model, part) for part in other.offloaded_parts]
    return sum(count_bytes(tensor) for part in parts for tensor in [*part.parameters(), *part.buffers()])


def measure_activations(other: DiffusionModule, step: StepSpec, ghosts: FakeTensorMode) -> int:
    """The most that a step holds beside weights and gradients; the latter are there from the second step on."""
    batch = {name: ghosts.empty_like(t, step.shape(t)) for name, t in build_fake_sample(other, step).items()}
    for weight in other.get_trainable_parameters().values():
        weight.grad = torch.empty_like(weight)
    start = ghosts.current_bytes - sum(map(count_bytes, batch.values()))
    ghosts.peak_bytes = ghosts.current_bytes
    compute_dtype = other.model.compute_dtype
    with torch.autocast(step.device.type, compute_dtype, enabled=compute_dtype is not torch.float32):
        loss = (other.compute_losses(batch) * batch["weight"] * batch["sample_weight"]).mean()
    if step.accumulate == 1:
        for weight in other.get_trainable_parameters().values():
            weight.grad = None  # between forward and backward, as the trainer does it
    loss.backward()
    del loss
    for weight in other.get_trainable_parameters().values():
        weight.grad = None
    return ghosts.peak_bytes - start


def build_fake_sample(other: DiffusionModule, step: StepSpec) -> dict[str, Tensor]:
    """With what the caches would hold in place of pixels and ids, when `step` turns them on."""
    sample, latent = dict(step.sample), step.sample["posterior"]
    if step.cached and "pixels" in sample:
        del sample["pixels"]
        sample |= {"mean": latent, "std": latent}
    if step.cached and "ids" in sample and "text_encoder" in other.offloaded_parts:
        tokens = sample.pop("ids").shape
        sample["context"] = torch.empty(*tokens, other.model.text_encoder.config.hidden_size, device="meta")
    return sample


@torch.no_grad()
def measure_decoding(other: DiffusionModule, step: StepSpec, ghosts: FakeTensorMode) -> int:
    """The most that decoding a batch of pictures holds: predicting them takes less."""
    if not step.num_images:
        return 0
    start, model = ghosts.current_bytes, other.model
    ghosts.peak_bytes = start
    model.decode(ghosts.empty_like(torch.empty(0), model.batch_shape(step.num_images, (step.pixels, step.pixels))))
    return ghosts.peak_bytes - start


def count_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def estimate_optimizer_state_bytes(optimizer, shapes: list[tuple[int, ...]], device: torch.device) -> int:
    """Bytes that an optimizer keeps for parameters of these shapes: read off one step on small ones of as many sides."""
    rules = {sides: probe_optimizer_state(optimizer, sides, device) for sides in {len(shape) for shape in shapes}}
    return sum(
        count * sum(estimate_state_tensor_bytes(shape, *rule) for rule in rules[len(shape)])
        for shape, count in Counter(shapes).items()
    )


def estimate_state_tensor_bytes(shape: tuple[int, ...], kept: tuple, small: tuple[int, ...], size: int) -> int:
    """Of a state that is `kept` so for a parameter of shape `small`: sides of the parameter, or a share of its numbers."""
    if all(side == 1 or side in small for side in kept):
        sides = [1 if side == 1 else shape[small.index(side)] for side in kept]
        return size * torch.Size(sides).numel()
    return round(size * torch.Size(kept).numel() * torch.Size(shape).numel() / torch.Size(small).numel())


@torch.enable_grad()
def probe_optimizer_state(optimizer, sides: int, device: torch.device) -> list[tuple]:
    """Shape, the parameter's shape and bytes a number of every tensor that is kept for one parameter of so many sides."""
    small = PROBE_SHAPES[sides]
    one, other = (nn.Parameter(torch.ones(small, device=device)) for _ in range(2))
    made = optimizer([{"params": [one, other], "lr": 1e-3, "name": "probe"}])
    for parameter in (one, other):
        parameter.grad = torch.full_like(parameter, 1e-3)
    if hasattr(made, "train"):
        made.train()
    made.step()
    shared = {id(value) for value in made.state[other].values()}  # tables, which do not grow with the parameters
    kept = [v for v in made.state[one].values() if isinstance(v, Tensor) and id(v) not in shared]
    return [(tuple(v.shape), small, v.element_size()) for v in kept if v.untyped_storage().nbytes()]


def build_step_spec(samples, loop, sampling, resolution: int, trainer) -> StepSpec:
    """The largest step of a run, as its first process takes it."""
    subject, strategy = samples.datasets[0], type(trainer.strategy).__name__
    largest = max(subject.sizes, key=lambda size: size[0] * size[1])
    number = next(n for n in range(len(samples)) if subject.sizes[samples.plan.image_index(n)] == largest)
    return StepSpec(
        samples.collate([samples[number]]),
        loop.batch_size,
        loop.gradient_accumulation_steps,
        trainer.strategy.root_device,
        ema=bool(loop.ema),
        num_shards=trainer.world_size if strategy == "ModelParallelStrategy" else 1,
        has_ddp_buckets=strategy == "DDPStrategy",
        num_images=sampling.batch_size,
        pixels=resolution,
    )


def get_free_and_total_memory(device: torch.device, held: int) -> tuple[int, int] | None:
    """Bytes of the device that are free or this process's own, and all of it; None where nobody says.

    On a CPU its own are the `held` ones, of the weights: the libraries are there in any case.
    """
    if device.type == "cuda":
        free, size = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device), size
    if device.type != "cpu" or not os.path.exists(MEMINFO):
        return None
    with open(MEMINFO) as file:
        told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    return told["MemAvailable"] + held, told["MemTotal"]


def format_bytes(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.1 * GB else f"{size / 2**20:.0f} MB"

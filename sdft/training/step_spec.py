"""What one training step computes, as far as its memory depends on it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class StepSpec:
    """Settings that determine the memory of a step, besides the module; `sample` is a batch of one with the largest images.

    Trainable weights, gradients and optimizer states are sharded over `num_shards` processes; DDP buckets hold a second copy of
    the gradients. `num_images` images of `resolution` px are sampled at once. The other fields replace options of the module.
    """

    sample: dict[str, Tensor]
    batch_size: int
    gradient_accumulation_steps: int
    device: torch.device
    ema: bool = False
    num_shards: int = 1
    has_ddp_buckets: bool = False
    num_images: int = 0
    resolution: int = 0
    image_scale: float = 1.0  # of the sides of training images
    gradient_checkpointing: bool | str = False  # "offload": keep their inputs in CPU memory
    cached: bool = False
    optimizer: Callable | None = None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of a batch of latents, `[batch, 4, h/8, w/8]`."""
        return self.batch_shape(self.sample["noise"])

    def batch_shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Shape in a batch of a tensor of `sample`."""
        count, *sides = tensor.shape
        if len(sides) == 3 and sides[-1] > 1:
            sides[1:] = [max(1, round(side * self.image_scale)) for side in sides[1:]]
        return (count * self.batch_size, *sides)


def build_step_spec(dataset, training, sampling, resolution: int, trainer) -> StepSpec:
    """The largest step of a run, on this rank."""
    image_dataset, strategy = dataset.datasets[0], type(trainer.strategy).__name__
    largest = max(image_dataset.sizes, key=lambda size: size[0] * size[1])
    number = next(n for n in range(len(dataset)) if image_dataset.sizes[dataset.plan.image_index(n)] == largest)
    return StepSpec(
        dataset.collate([dataset[number]]),
        training.batch_size,
        training.gradient_accumulation_steps,
        trainer.strategy.root_device,
        ema=bool(training.ema),
        num_shards=trainer.world_size if strategy == "ModelParallelStrategy" else 1,
        has_ddp_buckets=strategy == "DDPStrategy",
        num_images=sampling.batch_size,
        resolution=resolution,
    )

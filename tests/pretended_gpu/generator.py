"""Generators of random numbers on a pretended GPU."""

import weakref

import torch

CPU_GENERATOR = torch.Generator
GPU_GENERATORS: weakref.WeakSet[torch.Generator] = weakref.WeakSet()


class GPUGenerator(torch.Generator):
    """A generator of the CPU; operations get another Python object of the same state."""


def build_generator(device="cpu") -> torch.Generator:
    """`torch.Generator(device)`."""
    if torch.device(device).type == "cpu":
        return CPU_GENERATOR()
    generator = GPUGenerator()
    GPU_GENERATORS.add(generator)
    return generator


def is_on_gpu(generator: torch.Generator) -> bool:
    return any(torch.equal(generator.get_state(), known.get_state()) for known in GPU_GENERATORS)

"""Fill a network in a lower precision, one weight at a time: an fp32 copy of it never exists.

Digests are of the fp32 values, which are read again from the files, or drawn again.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from sdft.models.heap import return_free_memory
from sdft.models.original_layout import OriginalWeight

BLOCK_BYTES = 2**24  # of weights, after which what they left is given back: pages of mapped files, and free memory


class WeightSource(Protocol):
    def read(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield key and fp32 value of each weight of the network, in the order of its state dict."""


network_sources: WeakKeyDictionary[nn.Module, WeightSource] = WeakKeyDictionary()  # of networks in a lower precision


@dataclass(frozen=True)
class FileWeights:
    """The files and places of all weights, by key of the network's state dict."""

    places: dict[str, tuple[Path, OriginalWeight]]

    def read(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        from safetensors import safe_open

        shapes = {key: weight.shape for key, weight in network.state_dict().items()}
        readers, size = {}, 0
        for key, shape in shapes.items():
            path, place = self.places[key]
            if size > BLOCK_BYTES:
                readers, size = {}, 0  # the pages that were read stay in memory until the mapping ends
                return_free_memory()
            if path not in readers:
                readers[path] = safe_open(path, "pt")
            weight = place.read(readers[path].get_tensor(place.key), shape)
            size += weight.nbytes
            yield key, weight


def assign_weights(network: nn.Module, source: WeightSource, dtype: torch.dtype) -> None:
    """Fill a network that was built on the meta device."""
    network.load_state_dict({key: weight.to(dtype) for key, weight in source.read(network)}, assign=True)
    network_sources.pop(network, None)
    if dtype is not torch.float32:
        network_sources[network] = source
    return_free_memory()


@dataclass
class RandomLayers:
    """Random weights of layers with `reset_parameters`: the state of the global generator before each layer."""

    states: dict[nn.Module, Tensor] = field(default_factory=dict)

    def read(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        layers, drawn, drawn_name, size = dict(network.named_modules()), None, None, 0
        with torch.random.fork_rng(devices=[]):
            for key, weight in network.state_dict().items():
                name, _, kind = key.rpartition(".")
                if name != drawn_name:
                    drawn, drawn_name = copy.deepcopy(layers[name]).float(), name
                    torch.set_rng_state(self.states[layers[name]])
                    drawn.reset_parameters()
                value = getattr(drawn, kind).detach()
                assert torch.equal(value.to(weight.dtype), weight), f"{key} was initialised in another way"
                yield key, value
                if (size := size + value.nbytes) > BLOCK_BYTES:
                    size = 0
                    return_free_memory()


@dataclass
class RandomNetwork:
    """Random weights of a network that initialises all layers at its end: the state of the global generator before it."""

    build: Callable[[], nn.Module]
    state: Tensor

    def read(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Build the network again; meanwhile its own weights are dropped, as both take more memory than loading."""
        parameters = list(network.parameters())
        dtypes = [parameter.dtype for parameter in parameters]
        for parameter in parameters:
            parameter.data = parameter.data.new_empty(0)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state)
            fresh = self.build()
        try:
            yield from fresh.state_dict().items()
        finally:
            for parameter, dtype, value in zip(parameters, dtypes, fresh.parameters(), strict=True):
                parameter.data = value.data.to(dtype)
            del fresh, value
            return_free_memory()


def build_random_network(build: Callable[[], nn.Module], dtype: torch.dtype, by_layer: bool) -> nn.Module:
    """What `build` initialises from the global generator, in `dtype`; `by_layer` casts each layer before the next is drawn."""
    source = RandomLayers() if by_layer else RandomNetwork(build, torch.get_rng_state())
    with cast_new_layers(dtype, source.states) if by_layer else nullcontext():
        network = build()
    cast_parameters(network, dtype)
    network_sources[network] = source
    return_free_memory()
    return network


@contextmanager
def cast_new_layers(dtype: torch.dtype, states: dict[nn.Module, Tensor]):
    """Cast the weights of each layer when a module gets it; note the state of the generator before its first weight."""

    size = 0

    def note_state(layer: nn.Module, *_) -> None:
        if layer not in states:
            states[layer] = torch.get_rng_state()

    def cast_layer(parent: nn.Module, name: str, layer: nn.Module | None) -> None:
        nonlocal size
        size += cast_parameters(layer, dtype, recurse=False)
        if size > BLOCK_BYTES:
            size = 0
            return_free_memory()

    hooks = [
        register_module_parameter_registration_hook(note_state),
        register_module_module_registration_hook(cast_layer),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def cast_parameters(module: nn.Module | None, dtype: torch.dtype, recurse: bool = True) -> int:
    """Bytes of the parameters, which are cast."""
    parameters = list(module.parameters(recurse)) if module is not None else []
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
    return sum(parameter.nbytes for parameter in parameters)

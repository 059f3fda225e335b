"""Fill a network in a lower precision, one weight at a time: an fp32 copy of it never exists.

Digests are of the fp32 values, which are read again from the files, or drawn again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from sdft.models.heap import return_free_memory
from sdft.models.original_layout import OriginalWeight

INITIALIZERS = ("normal_", "uniform_", "kaiming_uniform_")  # of torch.nn.init, and methods of tensors
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


class RandomWeights(TorchFunctionMode):
    """Within the context, new layers are cast to `dtype`, and get the rounded draws of their own dtype, fp32.

    A layer is cast when a module gets it, before the next one is drawn. The draws can be repeated.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.uncollected = dtype, 0
        self.own_dtypes: dict[nn.Parameter, torch.dtype] = {}
        # the state of the generator before the last draw of a weight, and what draws it
        self.draws: dict[nn.Parameter, tuple[Tensor, Callable[[Tensor], Tensor]]] = {}

    def __enter__(self):
        self.hook = register_module_module_registration_hook(lambda parent, name, layer: self.cast(layer, False))
        return super().__enter__()

    def __exit__(self, *error):
        self.hook.remove()
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        weight = args[0] if args else kwargs.get("tensor")
        if not isinstance(weight, nn.Parameter) or name.startswith("_") or not name.endswith("_"):
            assert name not in INITIALIZERS, "draws of other tensors cannot be repeated"
            return function(*args, **kwargs)
        self.draws.pop(weight, None)
        if name not in INITIALIZERS:
            return function(*args, **kwargs)
        kwargs.pop("tensor", None)
        self.draws[weight] = torch.get_rng_state(), lambda tensor: function(tensor, *args[1:], **kwargs)
        if weight not in self.own_dtypes:
            return function(weight, *args[1:], **kwargs)
        value = self.draw(weight)
        weight.data.copy_(value)
        self.count(value)  # states of the generator lie in what it leaves, so that it would not be used again
        return weight

    def cast(self, module: nn.Module | None, recurse: bool = True) -> None:
        for parameter in module.parameters(recurse) if module is not None else ():
            self.own_dtypes.setdefault(parameter, parameter.dtype)
            parameter.data = parameter.data.to(self.dtype)
            self.count(parameter)

    def count(self, weight: Tensor) -> None:
        """Return what weights have left behind."""
        self.uncollected += weight.nbytes
        if self.uncollected > BLOCK_BYTES:
            self.uncollected = 0
            return_free_memory()

    def draw(self, weight: nn.Parameter) -> Tensor:
        return self.draws[weight][1](torch.empty(weight.shape, dtype=self.own_dtypes[weight]))

    def read(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        with torch.random.fork_rng(devices=[]):
            for key, weight in network.state_dict(keep_vars=True).items():
                if weight in self.draws:
                    torch.set_rng_state(self.draws[weight][0])
                    value = self.draw(weight)
                    assert torch.equal(value.to(weight.dtype), weight), f"{key} was initialised in another way"
                else:  # such as 1
                    value = weight.detach().to(self.own_dtypes.get(weight, weight.dtype))
                yield key, value
                self.count(value)


def build_random_network(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """What `build` initialises from the global generator, in `dtype`, without the whole network in fp32."""
    source = RandomWeights(dtype)
    with source:
        network = build()
    source.cast(network)
    network_sources[network] = source
    return_free_memory()
    return network

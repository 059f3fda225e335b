"""A start without what no run asks for: libraries import packages that take seconds, only because they are installed.

torchmetrics imports scipy, matplotlib, torchvision and transformers for scores that nobody asked for, diffusers and peft import
bitsandbytes for weights of 8 bits. Whoever needs one of them later imports it then.
"""

import importlib.metadata
import sys
from contextlib import contextmanager
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType, SimpleNamespace

INPUTS = "wandb.sdk.launch.inputs.internal"


def start() -> None:
    """From now on these libraries, where they have not been imported yet, are imported without the others."""
    if not any(isinstance(finder, Lean) for finder in sys.meta_path):
        sys.meta_path.insert(0, Lean())


class Lean(MetaPathFinder, Loader):
    """Finds what everybody finds, and imports it in a narrower world."""

    def __init__(self):
        self.loaders = {}

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target) if name in WORLDS else None
        if spec and spec.loader:
            self.loaders[name], spec.loader = spec.loader, self
        return spec

    def exec_module(self, module):
        name = module.__name__
        module.__loader__ = module.__spec__.loader = loader = self.loaders[name]
        with WORLDS[name]():
            loader.exec_module(module)


@contextmanager
def hidden(*packages: str):
    """Whoever asks for one of these, and it is not here yet, is told that it is not installed."""
    names = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name)


@contextmanager
def for_torchmetrics():
    """It asks lightning_utilities, which reads what pip has written; afterwards it may ask again."""
    import lightning_utilities.core.imports as asked

    packages = ("scipy", "matplotlib", "torchvision", "transformers")

    def version(name: str) -> str:
        if name in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return before(name)

    before, asked._version = asked._version, version
    asked.package_available.cache_clear()
    try:
        with hidden(*packages):
            yield
    finally:
        asked._version = before
        asked.package_available.cache_clear()
        for answer in vars(sys.modules.get("torchmetrics.utilities.imports", asked)).values():
            if isinstance(answer, asked.RequirementCache):
                vars(answer).pop("available", None)


@contextmanager
def for_peft():
    """It would ask at every layer, for quantized weights, of which there are none here."""
    with hidden("bitsandbytes"):
        yield
        from peft.import_utils import is_bnb_available

        is_bnb_available()  # is remembered


@contextmanager
def unlaunched():
    """W&B imports its launcher for a second or two, to ask it for words that a program has put by; none was asked to here."""
    if INPUTS in sys.modules:
        yield
        return
    stand_in = sys.modules[INPUTS] = ModuleType(INPUTS)
    stand_in.StagedLaunchInputs = lambda: SimpleNamespace(apply=lambda run: None)
    try:
        yield
    finally:
        del sys.modules[INPUTS]


WORLDS = {
    "torchmetrics": for_torchmetrics,
    "diffusers": partial(hidden, "bitsandbytes"),
    "peft": for_peft,
}

"""Packages that sleep until something of them is used: found, but not run, when somebody imports them in passing.

torch's compiler takes two seconds and 90 MB of every run. Libraries import `torch._dynamo` to ask what has been compiled
(nothing, while it sleeps) and to say what it is not to touch; they are answered here. Whoever asks for anything else wakes it,
and is answered by itself; it then hears what was said before. `diffusers.models.transformers` imports a hundred models that are
none of Stable Diffusion, where two of its files are asked for.
"""

import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from inspect import isroutine
from types import ModuleType, SimpleNamespace

COMPILER = "torch._dynamo"
MODELS = "diffusers.models.transformers"


class Bedroom(MetaPathFinder, Loader):
    """Finds packages where they lie, and does not run them."""

    def __init__(self):
        self.loaders = {}

    def find_spec(self, name, path=None, target=None):
        if name in KINDS and (spec := PathFinder.find_spec(name, path, target)) and spec.loader:
            self.loaders[name], spec.loader = spec.loader, self
            return spec
        if name.startswith(f"{COMPILER}.") and asleep(COMPILER):
            awake(COMPILER)
            return Risen(name).spec if name in sys.modules else None
        return None

    def create_module(self, spec):
        return KINDS[spec.name](spec.name, self.loaders[spec.name])

    def exec_module(self, module):
        pass


class Risen(Loader):
    """Of a part that the compiler brought along when it woke; Python would run what the part's own spec tells once more."""

    def __init__(self, name: str):
        self.module = sys.modules[name]
        self.own, self.spec = self.module.__spec__, ModuleSpec(name, self)
        self.module.__spec__ = self.spec

    def create_module(self, spec):
        return self.module

    def exec_module(self, module):
        module.__spec__ = self.own


class Sleeper(ModuleType):
    """The module itself; waking fills it with what it has."""

    answers: dict = {}

    def __init__(self, name: str, loader: Loader):
        super().__init__(name)
        self.own = loader

    def __getattr__(self, name: str):
        if name in self.answers:
            return self.answers[name]
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(awake(self.__name__), name)

    def wake(self) -> None:
        self.__loader__ = self.__spec__.loader = loader = vars(self).pop("own")
        self.__class__ = ModuleType
        loader.exec_module(self)


class Compiler(Sleeper):
    def __init__(self, name: str, loader: Loader):
        super().__init__(name, loader)
        self.heard = []
        self.answers = {
            "OptimizedModule": Compiled,
            "allow_in_graph": partial(self.hear, "allow_in_graph"),
            "assume_constant_result": partial(self.hear, "assume_constant_result"),
            "disable": disabled,
            "eval_frame": SimpleNamespace(OptimizedModule=Compiled),
            "graph_break": lambda msg="": None,
            "is_compiling": lambda: False,
        }

    def hear(self, name: str, told):
        if not asleep(COMPILER):
            return getattr(awake(COMPILER), name)(told)
        self.heard.append((name, told))
        return told

    def wake(self) -> None:
        heard = vars(self).pop("heard")
        del self.answers
        super().wake()
        for name, told in heard:
            getattr(self, name)(told)


def disabled(fn=None, *given, **named) -> Callable:
    """`fn` as it is, and once the compiler is awake, as the compiler returns it."""
    if fn is None:
        return lambda fn: disabled(fn, *given, **named)

    @cache
    def hidden() -> Callable:
        return awake(COMPILER).disable(fn, *given, **named)

    if not isroutine(fn):
        return hidden()

    @wraps(fn)
    def call(*args, **kwargs):
        return (fn if asleep(COMPILER) else hidden())(*args, **kwargs)

    return call


class Asked(type):
    def __instancecheck__(cls, thing) -> bool:
        return not asleep(COMPILER) and isinstance(thing, awake(COMPILER).OptimizedModule)


class Compiled(metaclass=Asked):
    """Stands for `OptimizedModule` where it was asked for in the compiler's sleep."""


KINDS = {COMPILER: Compiler, MODELS: Sleeper}


def asleep(name: str) -> bool:
    return isinstance(sys.modules.get(name), Sleeper)


def awake(name: str) -> ModuleType:
    """The package, for who wants it now."""
    package = import_module(name)
    if isinstance(package, Sleeper):
        package.wake()
    return package

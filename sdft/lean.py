"""A start without what no run asks for: libraries import packages that take seconds, only because they are installed.

torchmetrics imports scipy, matplotlib, torchvision and transformers for scores that nobody asked for, diffusers and peft import
bitsandbytes for weights of 8 bits, transformers imports scipy for the losses of detectors, diffusers for a choice of sigmas.
Whoever needs one of them later imports it then. transformers also reads its thousand files twice to find their names, and
diffusers all that pip has written.
"""

import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache, cached_property, partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType, SimpleNamespace

from sdft.asleep import Bedroom

OFTEN = gc.get_threshold()
SELDOM = 200_000  # imports make things that stay, and looking through them for garbage took a second
INPUTS = "wandb.sdk.launch.inputs.internal"


def start() -> None:
    """From now on these libraries, where they have not been imported yet, are imported without the others.

    Until `started`, garbage is seldom looked for.
    """
    gc.set_threshold(SELDOM, *OFTEN[1:])
    for kind in (Lean, Bedroom):
        if not any(isinstance(finder, kind) for finder in sys.meta_path):
            sys.meta_path.insert(0, kind())


def started() -> None:
    """The large imports are done: what computes may leave large things behind."""
    gc.set_threshold(*OFTEN)


class Lean(MetaPathFinder, Loader):
    """Finds what everybody finds, and imports it in a narrower world."""

    def __init__(self):
        self.loaders = {}

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target) if world_of(name) else None
        if spec and spec.loader:
            self.loaders[name], spec.loader = spec.loader, self
        return spec

    def exec_module(self, module):
        name = module.__name__
        module.__loader__ = module.__spec__.loader = loader = self.loaders[name]
        with world_of(name)():
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
def postponed(functions: dict[str, list[str]]):
    """Whoever takes these functions from these modules, that are not here yet, has the module imported by the first call.

    Whoever takes anything else from them has it imported at once.
    """

    def called(module: str, name: str):
        return lambda *given, **named: getattr(importlib.import_module(module), name)(*given, **named)

    def asked(module: str, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        put_away(module)
        return getattr(importlib.import_module(module), name)

    def put_away(module: str) -> None:
        if sys.modules.get(module) is stand_ins[module]:
            del sys.modules[module]

    stand_ins = {name: ModuleType(name) for name in functions if name not in sys.modules}
    for module, stand_in in stand_ins.items():
        vars(stand_in).update({name: called(module, name) for name in functions[module]})
        stand_in.__getattr__ = partial(asked, module)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for module in stand_ins:
            put_away(module)


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
    """It would ask at every layer for quantized weights, and for such as are spread over processes: there are none here."""
    with hidden("bitsandbytes"):
        yield
        from peft.import_utils import is_bnb_available

        is_bnb_available()  # is remembered
    sys.modules["peft.tuners.tuners_utils"]._torch_supports_distributed = False


@contextmanager
def for_transformers():
    """It remembers 128 of the 550 folders that it reads, so that it reads them all again when it comes back.

    And it imports its ways to spread a model over processes, which Lightning does here, and attention that has to be compiled.
    """
    yield
    asked = sys.modules["transformers.utils.import_utils"]
    if read := getattr(getattr(asked, "create_import_structure_from_path", None), "__wrapped__", None):
        asked.create_import_structure_from_path = cache(read)
    asked.is_torch_distributed_available = asked.is_torch_flex_attn_available = cache(lambda: False)


@contextmanager
def read_later():
    """It asks which distribution each package came with, for the sake of three that are seldom there."""
    before = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: Later(before)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = before


class Later(Mapping):
    """What `make` returns, once anything of it is asked for."""

    def __init__(self, make: Callable[[], Mapping]):
        self.make = make

    @cached_property
    def made(self) -> Mapping:
        return self.make()

    def __getitem__(self, key):
        return self.made[key]

    def __iter__(self):
        return iter(self.made)

    def __len__(self):
        return len(self.made)


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


DETECTORS = {  # functions that their losses take from elsewhere
    "scipy.optimize": ["linear_sum_assignment"],
    "transformers.image_transforms": ["center_to_corners_format"],
}
# these two would wake torch's compiler
MASKS = {"torch._dynamo._trace_wrapped_higher_order_op": ["TransformGetItemToIndex"]}
REGIONS = {"torch._dynamo.utils": ["is_compile_supported"]}
WORLDS = {
    "torchmetrics": for_torchmetrics,
    "diffusers": partial(hidden, "bitsandbytes"),
    "diffusers.utils.import_utils": read_later,
    "diffusers.models.attention_dispatch": partial(postponed, {"torch.nn.attention.flex_attention": []}),
    "diffusers.schedulers": partial(postponed, {"scipy.stats": [], "scipy.integrate": ["quad"]}),
    "peft": for_peft,
    "torchvision.ops.roi_align": partial(postponed, REGIONS),
    "transformers.loss.loss_utils": partial(postponed, DETECTORS),
    "transformers.masking_utils": partial(postponed, MASKS),
    "transformers.utils.import_utils": for_transformers,
    "wandb.util": partial(hidden, "pandas"),  # it then asks for the names of types
}


def world_of(name: str):
    """The one in which a package is imported; samplers have that of their package."""
    return WORLDS.get("diffusers.schedulers" if name.startswith("diffusers.schedulers.") else name)

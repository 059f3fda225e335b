"""Import the libraries of a run quickly: in a good order, and without searching their objects for garbage."""

import atexit
import gc
from contextlib import contextmanager
from importlib import import_module

# peft comes first: it needs most of what lightning needs, and registers its operations faster among fewer modules
TRAINING_LIBRARIES = ("torch", "peft", "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "lightning")
# `wandb.init` needs it; pydantic looks through all loaded modules for its classes, which takes a second at the end
WANDB_LIBRARIES = ("wandb.apis.public",)


@contextmanager
def pause_garbage_collection():
    """Do not collect garbage inside the context, and exempt the objects that are alive at its end from later collections.

    Imports allocate a million objects that live as long as the process; searching them takes a quarter of the time of imports.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # or libraries report leaks when the process ends
        if was_enabled:
            gc.enable()


def import_training_libraries(logger: str) -> None:
    """Import what every training run needs, and W&B if `logger` is the target of its logger."""
    torch, *others = TRAINING_LIBRARIES
    for name in [torch, *(WANDB_LIBRARIES if "wandb" in logger else ()), *others]:
        import_module(name)

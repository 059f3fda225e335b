"""A method says what learns, and how what was learned is kept."""

from pathlib import Path
from typing import ClassVar

from sdft.model import StableDiffusion


class Method:
    """Three verbs. What learns is what has `requires_grad` after `prepare`, and nothing else decides it."""

    result: ClassVar[str]  # the folder in the run that `save` fills

    def prepare(self, model: StableDiffusion) -> None:
        """Unfreeze, or add, the weights that learn."""
        raise NotImplementedError

    def save(self, model: StableDiffusion, folder: Path, name: str) -> None:
        """Write what was learned in formats that other tools open; `name` is what a person calls it."""
        raise NotImplementedError

    def load(self, model: StableDiffusion, folder: Path) -> None:
        """Read back what `save` wrote into a model that was not prepared."""
        raise NotImplementedError

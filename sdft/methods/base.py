"""A method says what learns, and how what was learned is kept."""

from pathlib import Path
from typing import ClassVar

from sdft.models.stable_diffusion import StableDiffusion


class Method:
    """Three verbs. What learns is what has `requires_grad` after `prepare`, and nothing else decides it."""

    output_kind: ClassVar[str]  # the folder in the run that `save` fills
    is_distillation: ClassVar[bool] = (
        False  # whether the model without what is added teaches it: what the objective has to be for
    )

    def check(self, model: StableDiffusion, captions: list[str]) -> None:
        """Raise `ValueError` for what cannot be learned, before anything takes time."""

    def prepare(self, model: StableDiffusion) -> None:
        """Unfreeze, or add, the weights that learn."""
        raise NotImplementedError

    def hyperparameters(self) -> dict:
        """What describes the method, in plain values: a run can only go on with the same."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__}
        plain = {k: v if isinstance(v, str | int | float | bool | None) else list(v) for k, v in values.items()}
        return {"name": type(self).__name__, **plain}

    def get_lr_multiplier(self, name: str) -> float:
        """How many times its part's learning rate the parameter `name` learns at."""
        return 1.0

    def save(self, model: StableDiffusion, folder: Path, name: str) -> None:
        """Write what was learned in formats that other tools open; `name` is what a person calls it."""
        raise NotImplementedError

    def load(self, model: StableDiffusion, folder: Path) -> None:
        """Read back what `save` wrote into a model that was not prepared."""
        raise NotImplementedError

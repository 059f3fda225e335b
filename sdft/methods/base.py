"""A fine-tuning method: which weights are trainable, and how they are saved and loaded."""

from dataclasses import fields
from pathlib import Path
from typing import ClassVar

from sdft.models.diffusion_model import DiffusionModel


class Method:
    """After `prepare`, exactly the parameters with `requires_grad` are trained."""

    output_kind: ClassVar[str]  # the folder in the run that `save` fills
    is_distillation: ClassVar[bool] = False  # the base model is the teacher; the objective must match

    def check(self, model: DiffusionModel, captions: list[str]) -> None:
        """Raise `ValueError` for settings that cannot be trained, before any expensive work."""

    def needs_fp32(self, part: str) -> bool:
        """Whether `prepare` or training takes the fp32 weights of a part, which is then loaded in fp32."""
        return False

    def prepare(self, model: DiffusionModel) -> None:
        """Unfreeze or add the trainable weights."""
        raise NotImplementedError

    def get_hyperparameters(self) -> dict:
        """Settings as plain values; resuming a run requires the same."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {k: v if isinstance(v, str | int | float | bool | None) else list(v) for k, v in values.items()}
        return {"name": type(self).__name__, **plain}

    def get_lr_multiplier(self, name: str) -> float:
        """The factor on the learning rate of the parameter `name`."""
        return 1.0

    def save(self, model: DiffusionModel, folder: Path, name: str) -> None:
        """Write the trained weights in formats that other tools read; `name` is the name of the run."""
        raise NotImplementedError

    def load(self, model: DiffusionModel, folder: Path) -> None:
        """Load the files of `save` into a model on which `prepare` was not called."""
        raise NotImplementedError

"""Full fine-tuning of the UNet, and optionally of the text encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sdft.methods.base import Method
from sdft.runs.files import replace_folder


@dataclass
class FullFineTuning(Method):
    text_encoder: bool = False
    output_kind: ClassVar[str] = "pipeline"

    def get_trainable_parts(self, model) -> list[str]:
        return [part for part in model.parts if self.text_encoder or part not in model.text_encoders]

    def prepare(self, model):
        for part in self.get_trainable_parts(model):
            model.parts[part].requires_grad_(True)
        model.freeze_unused_modules()

    def save(self, model, folder: Path, name: str):
        from sdft.models.saving import save_pipeline

        with replace_folder(folder) as partial:
            save_pipeline(model, partial)

    def load(self, model, folder: Path):
        from sdft.models.loading import load_pretrained

        trained = load_pretrained(str(folder))
        for part in self.get_trainable_parts(model):
            model.parts[part].load_state_dict(trained.parts[part].state_dict())

"""Full fine-tuning of the UNet, and optionally of the text encoder."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sdft.methods.base import Method


@dataclass
class FullFineTuning(Method):
    text_encoder: bool = False
    output_kind: ClassVar[str] = "pipeline"

    def get_trainable_parts(self, model) -> list[str]:
        return [part for part in model.parts if self.text_encoder or part not in model.text_encoders]

    def prepare(self, model):
        for part in self.get_trainable_parts(model):
            model.parts[part].requires_grad_(True)

    def save(self, model, folder: Path, name: str):
        from sdft.models.saving import save_pipeline

        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_pipeline(model, partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    def load(self, model, folder: Path):
        from sdft.models.loading import load_pretrained

        trained = load_pretrained(str(folder))
        for part in self.get_trainable_parts(model):
            model.parts[part].load_state_dict(trained.parts[part].state_dict())

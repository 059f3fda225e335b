"""Full fine-tuning of the UNet, and optionally of text encoders."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sdft.methods.base import Method
from sdft.methods.text_encoders import TextEncoderChoice, check_text_encoder_choice, choose_text_encoders
from sdft.runs.files import replace_folder


@dataclass
class FullFineTuning(Method):
    """`text_encoder`: whether to train the text encoders, or the names of those to train."""

    text_encoder: TextEncoderChoice = False
    output_kind: ClassVar[str] = "pipeline"

    def __post_init__(self):
        check_text_encoder_choice(self.text_encoder)

    def get_trainable_parts(self, model) -> list[str]:
        chosen = choose_text_encoders(model, self.text_encoder, default=False)
        return [part for part in model.parts if part in chosen or part not in model.text_encoders]

    def check(self, model, captions):
        self.get_trainable_parts(model)

    def needs_fp32(self, part):
        return True

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

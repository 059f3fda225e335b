"""Pretraining: train the UNet, and optionally text encoders, from random initialization."""

from dataclasses import dataclass

from sdft.methods.full import FullFineTuning


@dataclass
class Pretrain(FullFineTuning):
    def prepare(self, model):
        model.unet = type(model.unet).from_config(model.unet.config)
        for part in self.get_trainable_parts(model):
            if part in model.text_encoders:
                setattr(model, part, type(model.parts[part])(model.parts[part].config))
        model.eval()
        super().prepare(model)

"""Pretraining: train the UNet, and optionally the text encoder, from random initialization."""

from dataclasses import dataclass

from sdft.methods.full import FullFineTuning


@dataclass
class Pretrain(FullFineTuning):
    def prepare(self, model):
        model.unet = type(model.unet).from_config(model.unet.config)
        if self.text_encoder:
            for part, network in model.text_encoders.items():
                setattr(model, part, type(network)(network.config))
        model.eval()
        super().prepare(model)

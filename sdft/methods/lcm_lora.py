"""LCM-LoRA: an adapter for sampling in about four steps, distilled from the model without it (Luo et al., 2023)."""

import json
from dataclasses import dataclass
from typing import ClassVar

from sdft.lora.scaling import disable_adapters
from sdft.methods.lora import LoRA


@dataclass
class LCMLoRA(LoRA):
    """Trains the UNet only: teacher and student share the text encoders. The files record how to sample with them."""

    text_encoder: bool = False
    is_distillation: ClassVar[bool] = True
    extra_metadata: ClassVar[dict[str, str]] = {
        "modelspec.usage_hint": "LCM scheduler, 4 steps (2 to 8), guidance scale 1 (no classifier-free guidance)",
        "sampling": json.dumps({"scheduler": "lcm", "steps": 4, "guidance_scale": 1.0}),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.text_encoder is not False:
            choice = str(self.text_encoder).lower()
            raise ValueError(f"method.text_encoder={choice}: LCM-LoRA trains the UNet only; choose false")
        if self.init_lora_weights == "pissa":
            raise ValueError(
                "method.init_lora_weights=pissa: changes the base weights, which are the teacher; choose gaussian"
            )

    def check(self, model, captions):
        super().check(model, captions)
        if not any(caption.strip() for caption in captions):
            raise ValueError("data: no image has a caption; guidance distillation requires captions")

    def needs_fp32(self, part):
        return part != "unet" or super().needs_fp32(part)  # the text outputs for guidance are computed in fp32

    def prepare(self, model):
        model.cache_unconditional_text()
        super().prepare(model)

    @staticmethod
    def predict_as_teacher(model, noisy, timesteps, conditioning):
        """The UNet's output without the adapter, `[batch, 4, h, w]`."""
        with disable_adapters(model.unet):
            return model.predict(noisy, timesteps, conditioning)

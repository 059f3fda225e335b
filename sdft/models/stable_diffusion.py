"""Stable Diffusion 1 and 2 (Rombach et al., 2022): one text encoder, whose last hidden state is the context of the UNet."""

from typing import ClassVar

from torch import Tensor

from sdft.models.conditioning import Conditioning
from sdft.models.diffusion_model import DiffusionModel


class StableDiffusion(DiffusionModel):
    family: ClassVar[str] = "Stable Diffusion 1 or 2"
    component_names: ClassVar[dict[str, str]] = {"unet": "unet", "clip_l": "text_encoder"}
    network_classes: ClassVar[dict[str, str]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
    }
    pipeline_names: ClassVar[dict[str, str]] = {
        "text_to_image": "StableDiffusionPipeline",
        "image_to_image": "StableDiffusionImg2ImgPipeline",
        "controlnet": "StableDiffusionControlNetImg2ImgPipeline",
    }

    def encode_text(self, ids: Tensor) -> dict[str, Tensor]:
        """`context` `[batch, prompt_chunks * tokens, width]` of token ids `[batch, prompt_chunks * tokens]`."""
        context = self.clip_l(ids.reshape(-1, ids.shape[1] // self.prompt_chunks))[0]
        return {"context": context.reshape(*ids.shape, -1)}

    def text_shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        return {"context": (count, self.prompt_chunks * self.chunk_length, self.clip_l.config.hidden_size)}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = next(self.unet.parameters()).dtype  # faster than `unet.dtype`, which visits every module
        return self.unet(noisy.to(dtype), timesteps, conditioning.text["context"].to(dtype)).sample

    @property
    def pipeline_options(self) -> dict:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

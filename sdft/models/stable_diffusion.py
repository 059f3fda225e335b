"""Stable Diffusion 1 and 2 (Rombach et al., 2022): one text encoder, whose last hidden state is the context of the UNet."""

from typing import ClassVar

from torch import Tensor, nn

from sdft.models.clip_text_model import encode_with_hidden_state, get_text_model
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
        chunks = ids.reshape(-1, ids.shape[1] // self.prompt_chunks)
        if self.clip_skip == 1:
            context = self.clip_l(chunks)[0]
        else:
            _, hidden = encode_with_hidden_state(self.clip_l, chunks, self.clip_skip)
            context = get_text_model(self.clip_l).final_layer_norm(hidden)
        return {"context": context.reshape(*ids.shape, -1)}

    def list_unused_modules(self) -> list[nn.Module]:
        return list(get_text_model(self.clip_l).encoder.layers)[1 - self.clip_skip :] if self.clip_skip > 1 else []

    def text_shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        return {"context": (count, self.prompt_chunks * self.chunk_length, self.clip_l.config.hidden_size)}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.compute_dtype
        return self.unet(noisy.to(dtype), timesteps, conditioning.text["context"].to(dtype)).sample

    @property
    def pipeline_options(self) -> dict:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

"""Stable Diffusion XL (Podell et al., 2023): two text encoders, a pooled text vector, and the geometry of each image."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sdft.models.clip_text_model import encode_with_hidden_state, get_text_model
from sdft.models.conditioning import Conditioning
from sdft.models.diffusion_model import DiffusionModel

EMPTY_CAPTIONS = ("zeros", "encoded")


class StableDiffusionXL(DiffusionModel):
    """`empty_caption`: the text outputs of a caption without tokens are zeros, as in the published base model, or encoded.

    The context is the last hidden state but one of both encoders, without the final norm; the pooled vector is the projected
    state of the second encoder at the end token, of the first chunk if there are several.
    """

    family: ClassVar[str] = "Stable Diffusion XL"
    component_names: ClassVar[dict[str, str]] = {
        "unet": "unet",
        "clip_l": "text_encoder",
        "clip_g": "text_encoder_2",
    }
    network_classes: ClassVar[dict[str, str]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
    tokenizer_names: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")
    pipeline_names: ClassVar[dict[str, str]] = {
        "text_to_image": "StableDiffusionXLPipeline",
        "image_to_image": "StableDiffusionXLImg2ImgPipeline",
        "controlnet": "StableDiffusionXLControlNetImg2ImgPipeline",
    }
    text_outputs: ClassVar[tuple[str, ...]] = ("context", "pooled")
    image_inputs: ClassVar[tuple[str, ...]] = ("geometry",)
    default_clip_skip: ClassVar[int] = 2
    trains_text_encoders_by_default: ClassVar[bool] = False
    hub_tag: ClassVar[str] = "stable-diffusion-xl"
    new_token_code: ClassVar[str] = (
        "pipe.text_encoder_2.text_model.eos_token_id = 49407  # else the new token is taken for the end of the prompt"
    )
    empty_caption = "zeros"

    def encode_text(self, ids: Tensor) -> dict[str, Tensor]:
        """`context` `[batch, prompt_chunks * tokens, width]` and `pooled` `[batch, projection]` of ids from `tokenize`."""
        ids_by_encoder = ids.chunk(len(self.tokenizers), dim=1)
        chunks = [part.reshape(-1, part.shape[1] // self.prompt_chunks) for part in ids_by_encoder]
        outputs = [
            encode_with_hidden_state(network, tokens, self.clip_skip)
            for network, tokens in zip(self.text_encoders.values(), chunks, strict=True)
        ]
        context = torch.cat([hidden for _, hidden in outputs], dim=-1)
        text = {
            "context": context.reshape(*ids_by_encoder[0].shape, -1),
            "pooled": self.pool(outputs[-1][0], chunks[-1])[:: self.prompt_chunks],
        }
        if self.empty_caption == "encoded":
            return text
        is_empty = self.find_empty_captions(chunks)
        return {name: tensor.masked_fill(expand_rows(is_empty, tensor), 0) for name, tensor in text.items()}

    def find_empty_captions(self, chunks: list[Tensor]) -> Tensor:
        """`[batch]`: whether all chunks of each encoder are a start, an end and padding; nothing is copied to the device."""
        is_empty = [
            (tokens[:, 1] == tokenizer.eos_token_id) & (tokens[:, 2:] == tokenizer.pad_token_id).all(dim=1)
            for tokenizer, tokens in zip(self.tokenizers, chunks, strict=True)
        ]
        return torch.stack(is_empty).all(dim=0).reshape(-1, self.prompt_chunks).all(dim=1)

    def pool(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Projected states `[batch, projection]` at the first end token.

        transformers takes the largest token id for the end token of this model, which a new token would exceed.
        """
        ends = (tokens == self.tokenizer.eos_token_id).int().argmax(dim=1)
        return self.clip_g.text_projection(hidden[torch.arange(len(hidden), device=hidden.device), ends])

    def list_unused_modules(self) -> list[nn.Module]:
        """Layers of the first encoder; the pooled vector depends on all layers of the second."""
        text_model = get_text_model(self.clip_l)
        return [*list(text_model.encoder.layers)[1 - self.clip_skip :], text_model.final_layer_norm]

    def text_shapes(self, count: int) -> dict[str, tuple[int, ...]]:
        width = sum(network.config.hidden_size for network in self.text_encoders.values())
        tokens = self.prompt_chunks * self.chunk_length
        return {"context": (count, tokens, width), "pooled": (count, self.clip_g.config.projection_dim)}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.compute_dtype
        text, geometry = conditioning.text, conditioning.image["geometry"].float()  # bf16 would turn 1333 into 1336
        added = {"text_embeds": text["pooled"].to(dtype), "time_ids": geometry}
        return self.unet(noisy.to(dtype), timesteps, text["context"].to(dtype), added_cond_kwargs=added).sample

    @property
    def pipeline_options(self) -> dict:
        return {"force_zeros_for_empty_prompt": self.empty_caption == "zeros", "add_watermarker": False}


def expand_rows(rows: Tensor, tensor: Tensor) -> Tensor:
    """`[batch]` as `[batch, 1, …]` with the dimensions of `tensor`."""
    return rows.reshape(-1, *[1] * (tensor.ndim - 1))

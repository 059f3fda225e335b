"""LoRA layers of a small model with the parts of Stable Diffusion XL, for the tests of its files."""

import math
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdft.lora.architecture import get_model_architecture, list_architectures
from sdft.lora.families import PARTS
from sdft.lora.file import DIFFUSERS_FILE
from sdft.lora.formats import save_lora
from sdft.lora.low_rank import build_low_rank_layer
from sdft.lora.state_dict import build_adapter_state

(SDXL,), (SD15,), (SD21,) = (list_architectures(name) for name in ("sdxl", "sd15", "sd21"))
ATTENTION = re.compile(r"(to_q|to_k|to_v|to_out\.0|q_proj|k_proj|v_proj|out_proj)$")
TO_K = "down_blocks.1.attentions.0.transformer_blocks.{}.attn2.to_k"
ALL_LAYERS = re.compile("^(?!text_projection)")


def list_layers(architecture, part: str, pattern: re.Pattern) -> dict[str, tuple[int, ...]]:
    return {layer: shape for layer, shape in architecture.shapes[part].items() if pattern.search(layer)}


class TinyXL(nn.Module):
    """All layers of SDXL's kinds, with random weights: two attention blocks of different depth, two text encoders."""

    name = "tiny-xl"

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        text = {
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 99,
            "eos_token_id": 2,
            "bos_token_id": 1,
        }
        widths = {"text_encoder": 16, "text_encoder_2": 24}
        configs = {
            part: CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, projection_dim=width, **text)
            for part, width in widths.items()
        }
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(1, 2, 4),
            norm_num_groups=4,
            cross_attention_dim=40,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        )
        encoders = CLIPTextModel(configs["text_encoder"]), CLIPTextModelWithProjection(configs["text_encoder_2"])
        self.components = nn.ModuleDict(dict(zip(PARTS, (unet, *encoders), strict=True)))
        self.requires_grad_(False).eval()

    def build_pipeline(self):
        scheduler, vae = EulerDiscreteScheduler(), AutoencoderKL(block_out_channels=(4,), norm_num_groups=4)
        return StableDiffusionXLPipeline(
            vae=vae, tokenizer=None, tokenizer_2=None, scheduler=scheduler, add_watermarker=False, **self.components
        )

    @torch.no_grad()
    def predict(self) -> torch.Tensor:
        """The outputs of all parts, in fp64."""
        unet, *encoders = self.double().components.values()
        ids = torch.tensor([[1, 5, 7, 9, 2]])
        outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
        context = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        noisy = torch.linspace(-1, 1, 4 * 16 * 16, dtype=torch.float64).reshape(1, 4, 16, 16)
        added = {"text_embeds": outputs[1].text_embeds, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        prediction = unet(noisy, 500, context, added_cond_kwargs=added).sample
        return torch.cat([prediction.flatten(), context.flatten(), outputs[1].text_embeds.flatten()])


TINY_XL = get_model_architecture(TinyXL())


def draw_layers(architecture, pattern: re.Pattern = ATTENTION, rank: int = 4) -> dict:
    """Random layers by part, of different alphas."""
    generator, parts = torch.Generator().manual_seed(rank), {}
    for part in architecture.shapes:
        for number, (name, shape) in enumerate(list_layers(architecture, part, pattern).items()):
            size = math.prod(shape[1:])
            factors = (torch.randn(n, generator=generator) * 0.3 for n in ((shape[0], rank), (rank, size)))
            parts.setdefault(part, {})[name] = layer = build_low_rank_layer(tuple(factors), shape)
            layer.alpha = 1.0 + number % 3
    return parts


def save_layers(parts: dict, folder, architecture=TINY_XL) -> dict[str, Path]:
    save_lora({part: build_adapter_state(part, layers) for part, layers in parts.items()}, folder, "mine", architecture)
    return {"diffusers": folder / DIFFUSERS_FILE, "kohya": folder / "mine-kohya.safetensors"}


def compare(file, parts: dict, atol: float = 1e-6) -> None:
    expected = {(part, name): layer for part, layers in parts.items() for name, layer in layers.items()}
    assert file.layers.keys() == expected.keys()
    for key, layer in expected.items():
        torch.testing.assert_close(file.layers[key].compute_delta(), layer.compute_delta(), atol=atol, rtol=1e-6)

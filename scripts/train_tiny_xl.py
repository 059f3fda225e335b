"""Make tiny-xl from tiny-sd: a second text encoder, and the inputs of Stable Diffusion XL for its UNet.

    python -m scripts.train_tiny_xl                  minutes     sdft/assets/tiny-xl without a trained UNet
    python train.py experiment=digits_base_xl        55 minutes  trains the UNet
    python -m scripts.train_tiny_xl RUN              seconds     stores the UNet of that run in half precision

Both text encoders of SDXL are the text towers of CLIP models. The first is that of tiny-sd. The second is deeper, and is trained
here against the image tower of tiny-clip, whose space its projection shares.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from scripts.train_tiny_clip import build_batch, compute_contrastive_loss
from sdft.data.digits import load_strokes
from sdft.models.embedded import TINY_CLIP, TINY_SD, TINY_XL

GEOMETRY_WIDTH = 16  # numbers per sinusoidal embedding of one of the six numbers
TEXT_CONFIG = {"num_hidden_layers": 3, "num_attention_heads": 4}


def copy_parts() -> None:
    """Copy the parts that are those of tiny-sd, and the tokenizer twice: the second pads with id 0."""
    from transformers import CLIPTextModel

    TINY_XL.mkdir(exist_ok=True)
    for part in ("vae", "tokenizer", "scheduler"):
        shutil.copytree(TINY_SD / part, TINY_XL / part, dirs_exist_ok=True)
    CLIPTextModel.from_pretrained(TINY_SD / "text_encoder").half().save_pretrained(TINY_XL / "text_encoder")
    shutil.copytree(TINY_SD / "tokenizer", TINY_XL / "tokenizer_2", dirs_exist_ok=True)
    settings = json.loads((TINY_XL / "tokenizer_2/tokenizer_config.json").read_text())
    write_json(TINY_XL / "tokenizer_2/tokenizer_config.json", settings | {"pad_token": "!"})


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def train_text_encoder(steps: int = 2000, size: int = 64) -> None:
    """Train the second text encoder and its projection against the frozen image tower of tiny-clip."""
    import open_clip
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    clip, *_ = open_clip.create_model_and_transforms(f"local-dir:{TINY_CLIP}")
    clip.requires_grad_(False).eval()
    tokenizer = CLIPTokenizer.from_pretrained(TINY_XL / "tokenizer_2")
    base = CLIPTextConfig.from_pretrained(TINY_SD / "text_encoder").to_dict()
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**base | TEXT_CONFIG))
    coverage, digits = load_strokes()
    rows = torch.nonzero(torch.arange(len(digits)) % 10 != 9)[:, 0]
    optimizer = torch.optim.AdamW(encoder.parameters(), 1e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        images, captions = build_batch(rows[torch.randint(len(rows), (size,))], coverage, digits)
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        texts = torch.nn.functional.normalize(encoder(ids).text_embeds, dim=-1)
        with torch.no_grad():
            features = clip.encode_image(images, normalize=True)
        loss = compute_contrastive_loss(features, texts, clip.logit_scale.exp(), captions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"{step + 1}/{steps}  loss {loss.item():.4f}", flush=True)
    encoder.half().save_pretrained(TINY_XL / "text_encoder_2")


def build_unet():
    """tiny-sd's UNet with inputs for two text encoders and the geometry; the new text inputs start at zero."""
    from diffusers import UNet2DConditionModel

    source = UNet2DConditionModel.from_pretrained(TINY_SD, subfolder="unet")
    config = {key: value for key, value in source.config.items() if not key.startswith("_")}
    width, pooled = source.config.cross_attention_dim, 64
    unet = UNet2DConditionModel(
        **config
        | {
            "cross_attention_dim": 2 * width,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": GEOMETRY_WIDTH,
            "projection_class_embeddings_input_dim": 6 * GEOMETRY_WIDTH + pooled,
        }
    )
    weights = unet.state_dict()
    for name, weight in source.state_dict().items():
        target = weights[name]
        if target.shape[1:] != weight.shape[1:] and target.ndim == 2:
            target.zero_()
            target[:, : weight.shape[1]] = weight.reshape(len(weight), -1)
        else:
            target.copy_(weight)
    return unet


def prepare() -> None:
    torch.manual_seed(0)
    copy_parts()
    train_text_encoder()
    build_unet().half().save_pretrained(TINY_XL / "unet")
    classes = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.35.0"}
    write_json(TINY_XL / "model_index.json", index | {"force_zeros_for_empty_prompt": True} | classes)


def store(run: Path) -> None:
    """Store the UNet of a finished run in half precision."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(run / "pipeline/unet").half()
    unet.register_to_config(_name_or_path=None)
    unet.save_pretrained(TINY_XL / "unet")


if __name__ == "__main__":
    store(Path(sys.argv[1])) if len(sys.argv) > 1 else prepare()

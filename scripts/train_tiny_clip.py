"""Train tiny-clip on image-text pairs (Radford et al., 2021), the scorer and the text encoder of tiny-sd.

As in Stable Diffusion, the text encoder is CLIP's text tower, frozen during the UNet's pretraining. The training data include
every ink, paper and style, so that CLIP can score whether an image shows the prompted style. Images with the same caption are
positives of each other (Khosla et al., 2020).
"""

import json
import shutil
import sys

import torch
import torch.nn.functional as F

from sdft.data.digits import (
    IMAGE_SIZE,
    INK_PAPER_PAIRS,
    INKS,
    PAPERS,
    STYLES,
    describe_ink,
    draw_ink,
    format_caption,
    load_strokes,
)
from sdft.models.embedded import TINY_CLIP, TINY_SD

CLIP_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "patch_size": 4,
        "layers": 4,
        "width": 96,
        "head_width": 24,
        "mlp_ratio": 3.0,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 1024,
        "width": 64,
        "heads": 2,
        "layers": 2,
        "hf_tokenizer_name": "tokenizer",
        "tokenizer_kwargs": {},
    },
}
MEAN, STD = [0.5] * 3, [0.5] * 3


def augment_stroke(stroke: torch.Tensor) -> torch.Tensor:
    """Apply a small random affine transform to the ink coverage `[1, h, w]`."""
    turn, size = (torch.rand(2) - 0.5) * torch.tensor([0.5, 0.3])
    cos, sin = torch.cos(turn) * (1 + size), torch.sin(turn) * (1 + size)
    shift = (torch.rand(2) - 0.5) * 0.25
    grid = F.affine_grid(
        torch.stack([torch.stack([cos, -sin, shift[0]]), torch.stack([sin, cos, shift[1]])])[None],
        (1, 1, IMAGE_SIZE, IMAGE_SIZE),
        align_corners=False,
    )
    return F.grid_sample(stroke[None], grid, align_corners=False)[0]


def draw_captioned_digit(stroke: torch.Tensor, digit: int) -> tuple[torch.Tensor, str]:
    """Draw a digit in random inks or, with probability 1/4, in a random style; returns the image `[3, h, w]` and its caption."""
    stroke = augment_stroke(stroke)
    if torch.rand(()) < 0.25:
        draw_style, description = list(STYLES.values())[int(torch.randint(len(STYLES), ()))]
        pixels = draw_style(stroke[None])[0]
    else:
        ink_name, paper_name = INK_PAPER_PAIRS[int(torch.randint(len(INK_PAPER_PAIRS), ()))]
        jitter = torch.randn(2, 3) * 0.03
        pixels = draw_ink(
            stroke, torch.tensor(INKS[ink_name]) + jitter[0], torch.tensor(PAPERS[paper_name]) + jitter[1]
        )
        description = describe_ink(ink_name, paper_name)
    noise = torch.randn_like(pixels) * 0.1 * torch.rand(())
    return (pixels + noise).clamp(0, 1), format_caption(digit, description)


def build_batch(rows, coverage, digits):
    images, captions = zip(*(draw_captioned_digit(coverage[r], int(digits[r])) for r in rows), strict=True)
    return (torch.stack(images) - 0.5) / 0.5, list(captions)


def compute_contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, captions: list[str]
) -> torch.Tensor:
    same = torch.tensor([[a == b for b in captions] for a in captions]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * images @ texts.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(steps: int = 4000, size: int = 64) -> None:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    TINY_CLIP.mkdir(exist_ok=True)
    shutil.copytree(TINY_SD / "tokenizer", TINY_CLIP, dirs_exist_ok=True)
    config = {
        "model_cfg": CLIP_CONFIG,
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (TINY_CLIP / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    clip = open_clip.CLIP(**CLIP_CONFIG)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{TINY_CLIP}")
    coverage, digits = load_strokes()
    held_out = torch.arange(len(digits)) % 10 == 9
    train_rows = torch.nonzero(~held_out)[:, 0]
    optimizer = torch.optim.AdamW(clip.parameters(), 1e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        images, captions = build_batch(train_rows[torch.randint(len(train_rows), (size,))], coverage, digits)
        loss = compute_contrastive_loss(*clip(images, tokenizer(captions))[:3], captions)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"{step + 1}/{steps}  loss {loss.item():.4f}", flush=True)
    clip.eval().half().float()  # round to fp16, so that the accuracy is of the saved weights
    save_file(
        {k: v.half().contiguous() for k, v in clip.state_dict().items()}, TINY_CLIP / "open_clip_model.safetensors"
    )
    save_text_encoder(clip)
    print(
        "held-out digits: style {:.1%}, digit {:.1%}".format(
            *measure_accuracy(clip, tokenizer, torch.nonzero(held_out)[:, 0])
        )
    )


def save_text_encoder(clip) -> None:
    """Save the text tower as tiny-sd's `CLIPTextModel`: the same weights under the names of transformers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIP_CONFIG["text_cfg"]
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["width"],
            intermediate_size=4 * text["width"],
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            max_position_embeddings=text["context_length"],
            projection_dim=CLIP_CONFIG["embed_dim"],
            hidden_act="gelu",
            bos_token_id=text["vocab_size"] - 2,
            eos_token_id=text["vocab_size"] - 1,
            pad_token_id=text["vocab_size"] - 1,
        )
    )
    weights = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    names = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for number, block in enumerate(clip.transformer.resblocks):
        layer = f"encoder.layers.{number}"
        for source, target in names.items():
            module = block.get_submodule(source)
            weights |= {f"{layer}.{target}.weight": module.weight, f"{layer}.{target}.bias": module.bias}
        for kind in ("weight", "bias"):
            qkv = getattr(block.attn, f"in_proj_{kind}").chunk(3)
            weights |= {f"{layer}.self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", qkv, strict=True)}
    encoder.load_state_dict(weights)
    encoder.save_pretrained(TINY_SD / "text_encoder")


@torch.no_grad()
def measure_accuracy(clip, tokenizer, rows) -> tuple[float, float]:
    """Fractions of images whose nearest caption, of all (style x digit), has the right style, and the right digit."""
    from sdft.data.digits import describe_styles

    torch.manual_seed(1)
    coverage, digits = load_strokes()
    captions = [format_caption(digit, style) for style in describe_styles().values() for digit in range(10)]
    texts = clip.encode_text(tokenizer(captions), normalize=True)
    images, truth = build_batch(rows.repeat(2), coverage, digits)
    nearest = (clip.encode_image(images, normalize=True) @ texts.T).argmax(1).tolist()
    targets = [captions.index(caption) for caption in truth]
    pairs = list(zip(nearest, targets, strict=True))
    return tuple(
        sum(part(a) == part(b) for a, b in pairs) / len(pairs) for part in (lambda i: i // 10, lambda i: i % 10)
    )


if __name__ == "__main__":
    train_clip(*map(int, sys.argv[1:]))

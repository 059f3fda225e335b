"""Every method: the right weights are trainable, and plain diffusers reproduces a sample from the saved files."""

import json

import pytest
import torch
from conftest import ROOT, save_images
from diffusers import StableDiffusionPipeline
from PIL import Image
from test_training_run import max_pixel_difference

TINY_SD = ROOT / "sdft" / "assets" / "tiny-sd"
SUBJECT = ["instance_prompt=a sks three", "class_prompt=a handwritten three", "num_class_images=2"]
METHODS = {
    "lora": ["method=lora"],
    "loha": ["method=lora", "method.adapter_type=loha", "rank=4"],
    "lokr": ["method=lora", "method.adapter_type=lokr", "rank=4"],
    "use_dora": ["method=lora", "method.use_dora=true"],
    "pissa": ["method=lora", "method.init_lora_weights=pissa"],
    "convolutions": ["method=lora", "method.unet_targets=[to_q,conv1]", "method.text_encoder=false"],
    "sft": ["method=sft"],
    "sft, text encoder too": ["method=sft", "method.text_encoder=true"],
    "pretrain": ["method=pretrain"],
    "textual inversion": ["method=textual_inversion", "num_vectors=2", "text_encoder_lr=0.1"],
    "dreambooth": ["method=dreambooth", *SUBJECT],
    "dreambooth_lora": ["method=dreambooth_lora", *SUBJECT],
}
TRAINABLE = {  # by part: a substring of the names of its trainable parameters
    "lora": {"unet": ".lora_", "clip_l": ".lora_"},
    "loha": {"unet": ".hada_", "clip_l": ".hada_"},
    "lokr": {"unet": ".lokr_", "clip_l": ".lokr_"},
    "convolutions": {"unet": ".lora_"},
    "sft": {"unet": ""},
    "sft, text encoder too": {"unet": "", "clip_l": ""},
    "textual inversion": {"clip_l": "token_embedding.rows"},
}
TRAINABLE |= {"use_dora": TRAINABLE["lora"], "pissa": TRAINABLE["lora"], "dreambooth_lora": TRAINABLE["lora"]}
TRAINABLE |= {"pretrain": TRAINABLE["sft"], "dreambooth": TRAINABLE["sft"]}


def load_with_diffusers(folder):
    """The pipeline that diffusers loads from a run, without this package."""
    if (folder / "pipeline").is_dir():
        return StableDiffusionPipeline.from_pretrained(folder / "pipeline")
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_SD)
    if (folder / "adapter").is_dir():
        pipeline.load_lora_weights(folder / "adapter", weight_name="pytorch_lora_weights.safetensors")
    else:
        pipeline.load_textual_inversion(folder / "embedding", weight_name="learned_embeds.safetensors")
    return pipeline


FAST = ("lora",)


@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m in FAST else pytest.mark.slow) for m in METHODS])
def test_diffusers_reproduces_a_sample_after_twenty_steps(run, tmp_path, monkeypatch, method):  # pitfall 29
    from sdft.data.digits import Digits

    monkeypatch.chdir(tmp_path)
    overrides = ["steps=20", "lr=3e-3", "model.weights=pretrained"]
    if "dreambooth" in method:
        overrides.append(f"data.path={save_images(Digits('candy', [3], 5), tmp_path / 'subject', 5)}")
    module, folder = run(*overrides, *METHODS[method])

    trainable = TRAINABLE[method]
    for name, parameter in module.model.named_parameters():
        part = name.split(".")[0]
        assert parameter.requires_grad == (part in trainable and trainable[part] in name), name
        assert parameter.dtype == torch.float32 and part in ("unet", "vae", "clip_l")

    sample = json.loads((folder / "samples" / "step-000020" / "samples.json").read_text())[0]
    generator = torch.Generator().manual_seed(sample["seed"])
    image = load_with_diffusers(folder)(
        sample["prompt"], num_inference_steps=2, guidance_scale=3.0, height=32, width=32, generator=generator
    ).images[0]
    sampled, base = (Image.open(folder / "samples" / step / sample["file"]) for step in ("step-000020", "step-000000"))
    assert max_pixel_difference(sampled, image) <= 2
    assert max_pixel_difference(sampled, base) > 10

"""Every method: what it says learns, and what it saves gives plain diffusers the picture that was sampled."""

import json

import pytest
import torch
from conftest import ROOT, save_images
from diffusers import StableDiffusionPipeline
from PIL import Image
from test_training_run import difference

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
LEARNS = {  # by part; None is all of it
    "lora": {"unet": ".lora_", "text_encoder": ".lora_"},
    "loha": {"unet": ".hada_", "text_encoder": ".hada_"},
    "lokr": {"unet": ".lokr_", "text_encoder": ".lokr_"},
    "convolutions": {"unet": ".lora_"},
    "sft": {"unet": ""},
    "sft, text encoder too": {"unet": "", "text_encoder": ""},
    "textual inversion": {"text_encoder": "token_embedding.rows"},
}
LEARNS |= {"use_dora": LEARNS["lora"], "pissa": LEARNS["lora"], "dreambooth_lora": LEARNS["lora"]}
LEARNS |= {"pretrain": LEARNS["sft"], "dreambooth": LEARNS["sft"]}


def opened(folder):
    """What a stranger gets with diffusers alone."""
    if (folder / "pipeline").is_dir():
        return StableDiffusionPipeline.from_pretrained(folder / "pipeline")
    plain = StableDiffusionPipeline.from_pretrained(TINY_SD)
    if (folder / "adapter").is_dir():
        plain.load_lora_weights(folder / "adapter", weight_name="pytorch_lora_weights.safetensors")
    else:
        plain.load_textual_inversion(folder / "embedding", weight_name="learned_embeds.safetensors")
    return plain


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_saved_and_reloaded_give_the_sampled_picture(run, tmp_path, monkeypatch, method):  # pitfall 29
    from sdft.data.digits import Digits

    monkeypatch.chdir(tmp_path)
    words = ["steps=20", "lr=3e-3", "model.weights=pretrained"]
    if "dreambooth" in method:
        words.append(f"data.path={save_images(Digits('candy', [3], 5), tmp_path / 'subject', 5)}")
    module, folder = run(*words, *METHODS[method])

    parts = LEARNS[method]
    for name, parameter in module.model.named_parameters():
        part, mark = name.split(".")[0], parts.get(name.split(".")[0])
        assert parameter.requires_grad == (mark is not None and mark in name), name
        assert parameter.dtype == torch.float32 and part in ("unet", "vae", "text_encoder")

    facts = json.loads((folder / "samples" / "step-000020" / "samples.json").read_text())[0]
    generator = torch.Generator().manual_seed(facts["seed"])
    image = opened(folder)(
        facts["prompt"], num_inference_steps=2, guidance_scale=3.0, height=32, width=32, generator=generator
    ).images[0]
    sampled, base = (Image.open(folder / "samples" / step / facts["file"]) for step in ("step-000020", "step-000000"))
    assert difference(sampled, image) <= 2
    assert difference(sampled, base) > 10

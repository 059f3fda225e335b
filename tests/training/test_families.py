"""Every method trains every family by the same code: plain diffusers gives the sampled image, and a run resumes bit-exactly."""

import json
import re
from contextlib import chdir
from functools import cache

import pytest
import torch
from conftest import save_images
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from test_training_run import max_pixel_difference
from transformers import CLIPTextModelWithProjection

from sdft.data.digits import Digits
from sdft.models.loading import load_stable_diffusion
from sdft.models.saving import save_pipeline

METHODS = {
    "lora": ["method=lora", "lr=1e-2"],
    "lora of all parts": ["method=lora", "method.text_encoder=true", "part_lr.clip_l=2e-2", "lr=1e-2"],
    "dora of all parts": ["method=lora", "method.use_dora=true", "method.text_encoder=true", "lr=1e-2"],
    "loha": ["method=lora", "method.adapter_type=loha", "rank=2", "lr=1e-2"],
    "lokr": ["method=lora", "method.adapter_type=lokr", "rank=2", "lr=1e-2"],
    "sft": ["method=sft", "lr=1e-3", "empty_caption=encoded"],
    "sft of all parts": ["method=sft", "method.text_encoder=true", "lr=1e-3"],
    "dreambooth_lora": ["method=dreambooth_lora", "lr=1e-2"],
    "textual_inversion": ["method=textual_inversion", "text_encoder_lr=1", "num_vectors=2"],
    "lcm_lora": ["method=lcm_lora", "rank=2", "lr=1e-2"],
    "smooth diffusion": ["method=lora", "smooth_diffusion_weight=1", "lr=1e-2"],
    "pretrain": ["method=pretrain", "lr=1e-3"],
}
SUBJECT = ["instance_prompt=a sks three", "class_prompt=a handwritten three", "num_class_images=2"]
FAST = {("sdxl", "lora of all parts")}
TEXT_ENCODERS = {"sd21": {"clip_l"}, "sdxl": {"clip_l", "clip_g"}}


@pytest.fixture(scope="module")
def base(small_model_folder, tmp_path_factory):
    """A function that returns a folder with a small pretrained pipeline of a family."""

    @cache
    def write(family: str):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("base") / family
        save_pipeline(load_stable_diffusion(str(small_model_folder(family)), weights="random"), folder)
        return folder

    return write


@pytest.fixture(scope="module")
def train(shared_run, base, tmp_path_factory):
    """A function that trains a small model of a family with a method for two steps, and returns (module, folder)."""

    def start(family: str, method: str):
        overrides = [f"model={family}", f"model.name={base(family)}", "model.weights=pretrained", "resolution=32"]
        options = [o.replace("empty_caption", "model.empty_caption") for o in METHODS[method]]
        overrides += [o for o in options if family == "sdxl" or "empty_caption" not in o]
        if method == "dreambooth_lora":
            subject = tmp_path_factory.mktemp("subject") / "images"
            overrides += [*SUBJECT, f"data.path={save_images(Digits('candy', [3], 5), subject, 5)}"]
        return shared_run("steps=2", *overrides)

    return start


def run_card(folder, base_folder) -> dict:
    """The variables of the model card's code, with the base model where it is."""
    (card,) = folder.glob("*/README.md")
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    with chdir(card.parent):
        exec(code.replace(f"/PATH/TO/{base_folder.name}", str(base_folder)), variables := {})
    return variables


CASES = [(family, method) for family in TEXT_ENCODERS for method in METHODS]


@pytest.mark.parametrize(
    ("family", "method"), [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES]
)
def test_plain_diffusers_gives_the_sampled_image(train, base, family, method):
    module, folder = train(family, method)
    encoders = {part for part in module.get_trainable_parts() if part in TEXT_ENCODERS[family]}
    by_default = ("lora", "loha", "lokr", "dreambooth_lora", "smooth diffusion")
    is_trained = {"textual_inversion": True} | dict.fromkeys(by_default, family == "sd21")
    assert encoders == (TEXT_ENCODERS[family] if is_trained.get(method, "all parts" in method) else set())
    facts = json.loads((folder / "samples" / "step-000002" / "samples.json").read_text())[0]
    sampled, untrained = (
        Image.open(folder / "samples" / step / facts["file"]) for step in ("step-000002", "step-000000")
    )
    assert max_pixel_difference(sampled, run_card(folder, base(family))["image"]) <= 2
    assert max_pixel_difference(sampled, untrained) > 2
    record = json.loads((folder / "run.json").read_text())
    assert record["pipeline"] == module.model.pipeline_names["text_to_image"] and set(record["trainable"]) == set(
        module.get_trainable_parts()
    )


@pytest.mark.slow
@torch.no_grad()
def test_new_tokens_need_the_right_end_token_in_plain_pipelines(train, base):
    module, folder = train("sdxl", "textual_inversion")
    vectors = load_file(folder / "embedding" / "learned_embeds.safetensors")
    expected = module.model.condition_prompts(["a <mine> cat"]).text["pooled"]
    for options, is_equal in (({"eos_token_id": 49407}, True), ({}, False)):
        encoder = CLIPTextModelWithProjection.from_pretrained(base("sdxl"), subfolder="text_encoder_2", **options)
        pipe = StableDiffusionXLPipeline.from_pretrained(base("sdxl"), text_encoder_2=encoder)
        parts = {"clip_l": (pipe.text_encoder, pipe.tokenizer), "clip_g": (pipe.text_encoder_2, pipe.tokenizer_2)}
        for part, (text_encoder, tokenizer) in parts.items():
            pipe.load_textual_inversion(vectors[part], token="<mine>", text_encoder=text_encoder, tokenizer=tokenizer)
        _, _, pooled, _ = pipe.encode_prompt("a <mine> cat")
        assert torch.allclose(pooled, expected, atol=1e-5) == is_equal


def test_the_files_name_the_rate_of_each_text_encoder(train):
    _, folder = train("sdxl", "lora of all parts")
    for file in folder.glob("adapter/*.safetensors"):
        with safe_open(file, "pt") as weights:
            metadata = weights.metadata()
        assert metadata["ss_text_encoder_lr"] == "[0.02, 0.0001]" and metadata["ss_unet_lr"] == "0.01"


@pytest.mark.slow
def test_buckets_flips_and_dropped_captions_resume_bit_exactly(run, base, photographs):
    overrides = [f"model.name={base('sdxl')}", "model=sdxl", "model.weights=pretrained", "resolution=32", "steps=4"]
    overrides += ["data=folder", f"data.path={photographs}", "flip=true", "max_upscale=0", "caption_dropout=0.3"]
    overrides += ["method.text_encoder=true", "prompts=[a cat]", "method.dropout=0.1"]
    _, uninterrupted = run(*overrides, "save_every=2", "checkpoints_total_limit=2", name="uninterrupted")
    checkpoint = uninterrupted / "checkpoints" / "step-000002.ckpt"
    _, resumed = run(*overrides, f"resume={checkpoint}", name="resumed")
    one, two = (load_file(f / "adapter" / "pytorch_lora_weights.safetensors") for f in (uninterrupted, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert len(json.loads((uninterrupted / "data.json").read_text())["buckets"]) > 1

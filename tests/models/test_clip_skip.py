"""`model.clip_skip` chooses the layer of the text encoders as WebUI counts: in training, caches, samples and files."""

import json

import pytest
import torch
from safetensors import safe_open

from sdft.methods.full import FullFineTuning
from sdft.methods.lora import LoRA
from sdft.models.diffusion_model import COPIED_ATTRIBUTES
from sdft.models.image_cache import collect_image_settings
from sdft.models.loading import load_stable_diffusion
from sdft.models.sampling import Sampling

PROMPTS = ["a handwritten five in neon light", ""]


@torch.no_grad()
def encode(model) -> torch.Tensor:
    return model.encode_text(model.tokenize(PROMPTS))["context"]


def build_small(folder, **options):
    torch.manual_seed(0)
    return load_stable_diffusion(str(folder), weights="random", **options)


def build_diffusers_pipeline(model):
    """diffusers 0.42 takes the final norm from an attribute that transformers 5 no longer has."""
    pipeline = model.build_pipeline()
    vars(pipeline.text_encoder).setdefault("text_model", pipeline.text_encoder)
    return pipeline


def test_the_context_equals_that_of_diffusers_with_one_layer_less(tiny):
    model = tiny(clip_skip=2)
    expected, _ = build_diffusers_pipeline(model).encode_prompt(PROMPTS, "cpu", 1, False, clip_skip=1)
    assert model.diffusers_clip_skip == 1
    assert torch.equal(encode(model), expected) and not torch.equal(expected, encode(tiny()))


def test_the_usual_layer_is_the_default_of_each_family(tiny, small_xl, small_model_folder):
    assert torch.equal(encode(tiny(clip_skip=1)), encode(tiny())) and tiny(clip_skip=1).text_options == {}
    assert torch.equal(encode(small_xl(clip_skip=2)), encode(small_xl()))
    small = small_model_folder("sd21")
    assert torch.equal(encode(build_small(small, clip_skip=1)), encode(build_small(small)))


def test_stable_diffusion_xl_counts_from_two(small_model_folder):
    folder = small_model_folder("sdxl")
    file = folder / "text_encoder" / "config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | {"num_hidden_layers": 3}))
        model = build_small(folder, clip_skip=3, empty_caption="encoded")
    finally:
        file.write_text(before)
    expected, _, pooled, _ = model.build_pipeline().encode_prompt(PROMPTS, None, "cpu", 1, False, clip_skip=1)
    with torch.no_grad():
        text = model.encode_text(model.tokenize(PROMPTS))
    assert model.diffusers_clip_skip == 1
    assert torch.allclose(text["context"], expected, atol=1e-6) and torch.allclose(text["pooled"], pooled, atol=1e-6)
    assert model.text_options == {"clip_skip": 3, "empty_caption": "encoded"}


def test_layers_that_the_encoder_lacks_are_named(tiny, small_xl):
    layers = tiny().clip_l.config.num_hidden_layers
    for clip_skip in (0, layers + 1):
        with pytest.raises(ValueError, match=rf"model\.clip_skip={clip_skip}: choose 1 .* to {layers}"):
            tiny(clip_skip=clip_skip)
    with pytest.raises(ValueError, match=r"model\.clip_skip=1: choose 2 .*XL"):
        small_xl(clip_skip=1)


@pytest.mark.parametrize("method", [LoRA(rank=2, alpha=2.0, text_encoder=True), FullFineTuning(text_encoder=True)])
def test_layers_without_gradient_are_not_trained(tiny, small_xl, method):
    for model in (tiny(clip_skip=2), small_xl(empty_caption="encoded")):
        method.prepare(model)
        text = model.encode_text(model.tokenize(PROMPTS[:1]))
        sum(tensor.square().sum() for tensor in text.values()).backward()
        for network in model.text_encoders.values():
            trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
            assert trained and not [name for name, weight in trained.items() if weight.grad is None]


def test_caches_and_copies_depend_on_it(tiny):
    plain, skipped = tiny(), tiny(clip_skip=2)
    skipped.checkpoint_prediction_type = "v_prediction"
    assert plain.text_settings == "float32" and skipped.text_settings == "float32-clip_skip-2"
    settings = [collect_image_settings(model, Sampling(), 32) for model in (plain, skipped)]
    assert settings[1] == settings[0] | {"clip_skip": 2}
    copied = skipped.replace_networks({})
    assert all(getattr(copied, name) == getattr(skipped, name) for name in COPIED_ATTRIBUTES)
    assert copied.clip_skip == 2 and copied.checkpoint_prediction_type == "v_prediction"


def test_a_run_records_it_and_samples_with_it(run):
    options = ("model=tiny", "model.weights=pretrained", "model.clip_skip=2", "steps=1")
    module, folder = run(*options, "cache=ram")
    record = json.loads((folder / "run.json").read_text())
    assert record["clip_skip"] == {"webui": 2, "diffusers": 1}
    with safe_open(folder / "adapter" / "pytorch_lora_weights.safetensors", "pt") as reader:
        assert reader.metadata()["ss_clip_skip"] == "2"
    assert "    clip_skip=1,\n" in (folder / "adapter" / "README.md").read_text()
    image = Sampling(steps=2)(module.model, PROMPTS[:1], 32)[0]
    pipeline, negative = build_diffusers_pipeline(module.model), encode(module.model)[1:]  # there of the last layer
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 32}
    expected = pipeline(
        PROMPTS[0], negative_prompt_embeds=negative, generator=generator, **size, num_inference_steps=2, clip_skip=1
    ).images[0]
    difference = torch.tensor(list(image.tobytes())).int() - torch.tensor(list(expected.tobytes())).int()
    assert difference.abs().max() <= 2

"""Stable Diffusion XL: sizes, text encoding beside diffusers, geometry, and one step beside a straight-line computation."""

import pytest
import torch
from PIL import Image
from test_stable_diffusion import build_on_meta, count_parameters, count_trainable

from sdft.data.images import locate_crop, resize_and_crop
from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.lora import LoRA
from sdft.methods.textual_inversion import TextualInversion
from sdft.models.conditioning import describe_geometry
from sdft.models.precision import set_precision

PROMPTS = ["a cat", "", "one two three, " * 40]


def encode_with_diffusers(model, prompts, **options):
    pipeline = model.build_pipeline()
    with torch.no_grad():
        context, negative, pooled, negative_pooled = pipeline.encode_prompt(prompts, device="cpu", **options)
    return (context, pooled), (negative, negative_pooled)


def assert_text_equals(text, expected) -> None:
    torch.testing.assert_close((text["context"], text["pooled"]), expected, atol=1e-6, rtol=1e-6)


def test_the_published_model_has_the_published_numbers_of_parameters():
    model = build_on_meta("sdxl")
    counts = {part: count_parameters(network) for part, network in model.parts.items()}
    assert counts == {"unet": 2_567_463_684, "clip_l": 123_060_480, "clip_g": 694_659_840}
    assert model.text_shapes(1) == {"context": (1, 77, 2048), "pooled": (1, 1280)}
    assert model.vae.config.scaling_factor == 0.13025 and model.vae_scale_factor == 8
    assert [tokenizer.pad_token_id for tokenizer in model.tokenizers] == [49407, 0]
    LoRA(rank := 2, rank, text_encoder=True).prepare(model)
    adapters = {
        part: sum(weight.numel() for name, weight in network.named_parameters() if "lora_" in name)
        for part, network in model.parts.items()
    }
    assert adapters == {"unet": 1_451_520 * rank, "clip_l": 73_728 * rank, "clip_g": 327_680 * rank}
    assert count_trainable(model.clip_l) == 67_584 * rank  # without the last layer, which nothing depends on


@torch.no_grad()
def test_text_is_encoded_as_in_diffusers(small_xl):
    model = small_xl(empty_caption="encoded")
    text = model.condition_prompts(PROMPTS).text
    expected, negative = encode_with_diffusers(model, PROMPTS)
    assert_text_equals(text, expected)
    assert_text_equals(model.condition_prompts([""] * 3).text, negative)


@torch.no_grad()
def test_the_empty_caption_is_zeros_or_encoded_as_the_base_model_says(small_xl):
    model = small_xl()
    text = model.condition_prompts(PROMPTS).text
    _, negative = encode_with_diffusers(model, PROMPTS)
    assert model.empty_caption == "zeros" and not negative[0].any()
    assert [bool(row.any()) for row in text["context"]] == [True, False, True]
    assert [bool(row.any()) for row in text["pooled"]] == [True, False, True]
    assert model.build_pipeline().config.force_zeros_for_empty_prompt


@pytest.mark.parametrize("prompt_chunks", [1, 2])
def test_the_empty_caption_is_known_without_tokenizing_it(small_xl, prompt_chunks, monkeypatch):
    model = small_xl(prompt_chunks=prompt_chunks)
    TextualInversion("<mine>", num_vectors=2).prepare(model)
    ids = model.tokenize(["", "a cat", "<mine>"])
    monkeypatch.setattr(type(model), "tokenize", None)
    assert [bool(row.any()) for row in model.encode_text(ids)["context"]] == [False, True, True]


@torch.no_grad()
def test_new_tokens_do_not_take_the_place_of_the_end_token(small_xl):
    model = small_xl(empty_caption="encoded")
    torch.manual_seed(0)
    TextualInversion("<mine>", num_vectors=2).prepare(model)
    text = model.condition_prompts(["a <mine> cat", "a cat"]).text
    model.clip_g.text_model.eos_token_id = 49407  # of the configuration that can be used with new tokens
    expected, _ = encode_with_diffusers(model, ["a <mine> cat", "a cat"])
    assert_text_equals(text, expected)


@torch.no_grad()
def test_several_chunks_keep_the_pooled_vector_of_the_first(small_xl):
    one, three = small_xl(), small_xl(prompt_chunks=3)
    text = three.condition_prompts(["a cat", PROMPTS[2]]).text
    assert text["context"].shape == three.text_shapes(2)["context"]
    assert_text_equals(
        {"context": text["context"][:1, :77], "pooled": text["pooled"][:1]},
        tuple(one.condition_prompts(["a cat"]).text.values()),
    )


GEOMETRIES = [  # image, training size, crop position, flip, left and top of the crop
    ((64, 64), (32, 32), (0.5, 0.5), False, (0, 0)),
    ((128, 64), (32, 32), (0.5, 0.5), False, (16, 0)),  # resized to 64 x 32
    ((128, 64), (32, 32), (0.0, 0.0), True, (32, 0)),  # mirrored: 64 - 0 - 32
    ((64, 192), (32, 64), (0.0, 1.0), False, (0, 32)),  # resized to 32 x 96
    ((30, 20), (48, 32), (0.5, 0.5), True, (0, 0)),  # enlarged to 48 x 32
]


@pytest.mark.parametrize(("image", "size", "position", "flip", "crop"), GEOMETRIES)
def test_the_geometry_is_that_of_the_pixels(image, size, position, flip, crop):
    assert locate_crop(image, size, position, flip) == crop
    assert describe_geometry(image, crop, size).tolist() == [*image[::-1], *crop[::-1], *size[::-1]]
    ramp = torch.linspace(0, 255, image[0])[None, :].expand(image[1], -1).byte().numpy()
    pixels = resize_and_crop(Image.fromarray(ramp).convert("RGB"), size, position, flip)
    ends = pixels[0, 0, [0, -1]].tolist()
    assert (ends[0] > ends[1]) == flip


def test_timestep_and_geometry_are_exact_in_bf16(small_xl):
    model = small_xl()
    set_precision(model, torch.bfloat16)
    seen = {}
    model.unet.add_time_proj.register_forward_pre_hook(lambda _, args: seen.update(geometry=args[0].clone()))
    conditioning = model.condition_prompts(["a cat"], describe_geometry((1333, 1000)))
    model.predict(torch.randn(1, 4, 8, 8), torch.tensor([999]), conditioning)
    assert seen["geometry"].tolist() == [1000, 1333, 0, 0, 1000, 1333]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_one_step_equals_a_straight_line_computation(small_xl, kind):
    model = small_xl(prediction_type=kind)
    model.unet.requires_grad_(True)
    noise, latents, geometry = torch.randn(2, 4, 8, 6), torch.randn(2, 4, 8, 6), torch.randint(0, 99, (2, 6)).float()
    timesteps, mask = torch.tensor([10, 900]), torch.ones(2, 1, 8, 6)
    batch = {"ids": model.tokenize(["a cat", "two dogs"]), "geometry": geometry}
    draws = {"noise": noise, "timestep": timesteps, "mask": mask, "offset": noise, "perturbation": noise}
    losses = DiffusionLoss(weighting="none")(model, latents, model.condition(batch), draws)
    losses.sum().backward()
    gradients = [p.grad.clone() for p in model.unet.parameters()]
    model.unet.zero_grad()

    pipeline = model.build_pipeline()
    with torch.no_grad():
        context, _, pooled, _ = pipeline.encode_prompt(["a cat", "two dogs"], device="cpu")
    alpha = pipeline.scheduler.alphas_cumprod[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    added = {"text_embeds": pooled, "time_ids": geometry}
    output = model.unet(noisy, timesteps, context, added_cond_kwargs=added).sample
    expected = (output - target).square().mean((1, 2, 3))
    expected.sum().backward()
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
    for gradient, parameter in zip(gradients, model.unet.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)

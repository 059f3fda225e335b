"""Attention to the ends: at an end it is one's own, elsewhere the mean of what both attend to."""

import pytest
import torch

from sdft.apps.morph.attention import SharedAttention

STEP, LAYER = torch.tensor(500), "1.attentions.0.transformer_blocks.0.attn1.to_v"


@pytest.fixture(scope="module")
def unet(tiny):
    return tiny().unet


@pytest.fixture
def shared(unet):
    made = SharedAttention(unet)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def inputs():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 8, 8, generator=draw) for _ in range(3)], torch.randn(1, 8, 64, generator=draw)


@torch.no_grad()
def output(unet, latents, context):
    return unet(latents, STEP, context).sample


def test_at_an_end_shared_attention_is_its_own(unet, shared, inputs):
    latents, context = inputs
    for end in (0, 1):
        with shared.recording(end):
            output(unet, latents[end], context)
    for end in (0, 1):
        plain = output(unet, latents[end], context)
        with shared.mixing(float(end)):
            torch.testing.assert_close(output(unet, latents[end], context), plain)


def test_between_them_keys_and_values_are_the_weighted_mean(unet, shared, inputs):
    latents, context = inputs
    seen = []
    for end in (0, 1):
        with shared.recording(end):
            output(unet, latents[end], context)
    plain = output(unet, latents[2], context)
    watch = unet.up_blocks.get_submodule(LAYER).register_forward_hook(lambda _, given, out: seen.append(out))
    with shared.mixing(0.25):
        mixed = output(unet, latents[2], context)
    watch.remove()
    torch.testing.assert_close(seen[0], 0.75 * shared.ends[0][LAYER] + 0.25 * shared.ends[1][LAYER])
    assert not torch.allclose(mixed, plain, atol=1e-4)


def test_recording_changes_nothing_and_nothing_stays_behind(unet, inputs):
    latents, context = inputs
    plain, shared = output(unet, latents[0], context), SharedAttention(unet)
    with shared.recording(0):
        assert torch.equal(output(unet, latents[0], context), plain)
    with shared.recording(1):
        output(unet, latents[1], context)
    with shared.mixing(1.0):
        assert not torch.equal(output(unet, latents[0], context), plain)
    assert torch.equal(output(unet, latents[0], context), plain)
    shared.remove()
    assert not any(module._forward_hooks for module in unet.modules())


def test_the_decoder_alone_is_shared_and_never_the_words(unet, shared, inputs):
    with shared.recording(0):
        output(unet, inputs[0][0], inputs[1])
    layers = [name for name, _ in unet.named_modules() if name.endswith(("attn1.to_k", "attn1.to_v"))]
    assert {f"up_blocks.{name}" for name in shared.ends[0]} == {name for name in layers if name.startswith("up_")}
    assert 0 < len(shared.ends[0]) < len(layers)

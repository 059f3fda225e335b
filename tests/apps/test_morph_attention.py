"""Shared attention: unchanged at the endpoints, a weighted mean of keys and values between them."""

import pytest
import torch

from sdft.apps.morph.attention import SharedAttention
from sdft.methods.lora import LoRA

STEP, LAYER = torch.tensor(500), "1.attentions.0.transformer_blocks.0.attn1.to_v"


@pytest.fixture(scope="module")
def unet(tiny):
    return tiny().unet


@pytest.fixture
def shared(unet):
    attention = SharedAttention(unet)
    yield attention
    attention.remove()


@pytest.fixture(scope="module")
def inputs():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 8, 8, generator=draw) for _ in range(3)], torch.randn(1, 8, 64, generator=draw)


@torch.no_grad()
def predict(unet, latents, context):
    return unet(latents, STEP, context).sample


def test_shared_attention_at_an_endpoint_changes_nothing(unet, shared, inputs):
    latents, context = inputs
    for end in (0, 1):
        with shared.record_endpoint(end):
            predict(unet, latents[end], context)
    for end in (0, 1):
        expected = predict(unet, latents[end], context)
        with shared.mix_endpoints(float(end)):
            torch.testing.assert_close(predict(unet, latents[end], context), expected)


def test_keys_and_values_are_the_weighted_mean_of_the_endpoints(unet, shared, inputs):
    latents, context = inputs
    recorded = []
    for end in (0, 1):
        with shared.record_endpoint(end):
            predict(unet, latents[end], context)
    expected = predict(unet, latents[2], context)
    hook = unet.up_blocks.get_submodule(LAYER).register_forward_hook(lambda _, inputs, out: recorded.append(out))
    with shared.mix_endpoints(0.25):
        mixed = predict(unet, latents[2], context)
    hook.remove()
    torch.testing.assert_close(recorded[0], 0.75 * shared.endpoints[0][LAYER] + 0.25 * shared.endpoints[1][LAYER])
    assert not torch.allclose(mixed, expected, atol=1e-4)


def test_recording_changes_nothing_and_hooks_are_removed(unet, inputs):
    latents, context = inputs
    expected, shared = predict(unet, latents[0], context), SharedAttention(unet)
    with shared.record_endpoint(0):
        assert torch.equal(predict(unet, latents[0], context), expected)
    with shared.record_endpoint(1):
        predict(unet, latents[1], context)
    with shared.mix_endpoints(1.0):
        assert not torch.equal(predict(unet, latents[0], context), expected)
    assert torch.equal(predict(unet, latents[0], context), expected)
    shared.remove()
    assert not any(module._forward_hooks for module in unet.modules())


def test_only_self_attention_of_the_decoder_is_shared(unet, shared, inputs):
    with shared.record_endpoint(0):
        predict(unet, inputs[0][0], inputs[1])
    layers = [name for name, _ in unet.named_modules() if name.endswith(("attn1.to_k", "attn1.to_v"))]
    assert {f"up_blocks.{name}" for name in shared.endpoints[0]} == {name for name in layers if name.startswith("up_")}
    assert 0 < len(shared.endpoints[0]) < len(layers)


def test_layers_with_an_adapter_are_recorded(tiny, inputs):
    model = tiny()
    LoRA(4, 4, text_encoder=False).prepare(model)
    shared = SharedAttention(model.unet)
    with shared.record_endpoint(0):
        predict(model.unet, inputs[0][0], inputs[1])
    assert len(shared.endpoints[0]) == len(shared.hooks)

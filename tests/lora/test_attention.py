"""Attention with LoRA in few operations equals peft's layers: outputs, gradients, second derivatives, and every adapter state."""

import copy
import warnings

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from sdft.lora.attention import LoraAttentionProcessor, LowRankProjections
from sdft.lora.scaling import disable_adapters, load_adapters, scale_adapters
from sdft.methods.lora import LoRA

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def build_pair(model, method):
    """The UNet with the method's adapter, whose B is random, and a copy of it with peft's forward."""
    method.prepare(model)
    torch.manual_seed(1)
    for name, parameter in model.unet.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.02)
    peft_unet = copy.deepcopy(model.unet)
    peft_unet.set_attn_processor(AttnProcessor2_0())
    return model.unet, peft_unet


def build_inputs(unet, dtype=torch.float32):
    torch.manual_seed(2)
    context = torch.randn(2, 5, unet.config.cross_attention_dim, dtype=dtype)
    return torch.randn(2, 4, 8, 8, dtype=dtype), torch.tensor([5, 700]), context


def count_processors(unet) -> int:
    return sum(isinstance(processor, LoraAttentionProcessor) for processor in unet.attn_processors.values())


def compute_gradients(unet, order: int) -> list[torch.Tensor]:
    """Gradients of a loss in the trained weights; of order 2, of the norm of the loss's gradient in the latents."""
    latents, timesteps, context = build_inputs(unet, unet.dtype)
    latents.requires_grad_(order == 2)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = unet(latents, timesteps, context).sample.square().mean()
        if order == 2:
            loss = torch.autograd.grad(loss, latents, create_graph=True)[0].square().sum()
        return torch.autograd.grad(loss, [p for p in unet.parameters() if p.requires_grad])


def compute_deviation(ours, expected) -> float:
    """Of two lists of tensors, relative to their norm."""
    one, other = (torch.cat([tensor.detach().flatten() for tensor in tensors]) for tensors in (ours, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("options", [{"alpha": 8}, {"alpha": 3}, {"alpha": 8, "use_rslora": True}], ids=str)
def test_outputs_and_gradients_equal_those_of_peft(tiny, options, dtype, tolerance):
    networks = [network.to(dtype) for network in build_pair(tiny(), LoRA(8, text_encoder=False, **options))]
    assert [count_processors(network) for network in networks] == [len(networks[0].attn_processors), 0]
    outputs = [[network(*build_inputs(network, dtype)).sample] for network in networks]
    assert compute_deviation(*outputs) <= tolerance
    for order in (1, 2):
        assert compute_deviation(*(compute_gradients(network, order) for network in networks)) <= tolerance * 4 ** (
            order - 1
        )


def test_gradient_checkpointing_changes_no_gradient(tiny):
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    unet, _ = build_pair(tiny(), LoRA(4, 4, text_encoder=False))
    expected = [compute_gradients(unet, order) for order in (1, 2)]
    unet.train().enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
    for order, gradients in zip((1, 2), expected, strict=True):
        torch.testing.assert_close(compute_gradients(unet, order), gradients)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_derivatives_of_projections_are_exact(count, scale):
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    weights, biases = [draw(4, 5) for _ in range(count)], [draw(4), None, None][:count]
    downs, ups = [draw(2 + n, 5) for n in range(count)], [draw(4, 2 + n) for n in range(count)]
    x, *factors = (tensor.requires_grad_() for tensor in (draw(3, 5), *downs, *ups))

    def project(x, *factors):
        return LowRankProjections.apply(x, (scale,) * count, *weights, *biases, *factors)

    for number, output in enumerate(project(x, *factors)):
        update = scale * x @ downs[number].T @ ups[number].T
        torch.testing.assert_close(output, torch.nn.functional.linear(x, weights[number], biases[number]) + update)
    assert torch.autograd.gradcheck(project, (x, *factors))
    assert torch.autograd.gradgradcheck(project, (x, *factors))


def test_every_state_of_the_adapters_is_that_of_peft(tiny):
    unet, peft_unet = build_pair(tiny(), LoRA(4, 2, text_encoder=False))
    inputs = build_inputs(unet)
    for network in (unet, peft_unet):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a second adapter
            network.add_adapter(LoRA(2, 2).build_peft_config(TARGETS), "other")
        torch.manual_seed(3)
        for name, parameter in network.named_parameters():
            if ".other." in name:
                parameter.data.normal_(0, 0.02)
    outputs = []
    for network in (unet, peft_unet):
        results = []
        with torch.no_grad():
            for adapters in (["default"], ["other"], ["default", "other"]):
                network.set_adapters(adapters)
                results.append(network(*inputs).sample)
            network.set_adapters(["default"])
            with scale_adapters(network, 0.5):
                results.append(network(*inputs).sample)
            with disable_adapters(network):
                results.append(network(*inputs).sample)
            network.fuse_lora()
            results.append(network(*inputs).sample)
            network.unfuse_lora()
            results.append(network(*inputs).sample)
        outputs.append(results)
    for number, (ours, expected) in enumerate(zip(*outputs, strict=True)):
        torch.testing.assert_close(
            ours, expected, atol=2e-6, rtol=1e-6, msg=lambda text, n=number: f"state {n}: {text}"
        )
    differences = [(outputs[0][0] - result).abs().max() for result in outputs[0][1:6]]
    assert min(*differences[:4]) > 1e-4 > differences[4]  # each state differs; merging does not


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"dropout": 0.1},
        {"adapter_type": "loha"},
        {"adapter_type": "lokr"},
        {"unet_targets": ["to_q", "to_v"]},
    ],
    ids=str,
)
def test_other_adapters_have_the_forward_of_peft(tiny, options):
    model = tiny()
    LoRA(4, 4, text_encoder=False, **options).prepare(model)
    assert not count_processors(model.unet)


def test_weights_of_another_precision_have_the_forward_of_peft(tiny):
    model = tiny()
    unet, peft_unet = build_pair(model, LoRA(4, 4, text_encoder=False))
    for parameter in [*unet.parameters(), *peft_unet.parameters()]:
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.to(torch.bfloat16)
    inputs = build_inputs(unet, torch.bfloat16)
    assert torch.equal(unet(*inputs).sample, peft_unet(*inputs).sample)


def test_an_adapter_that_is_loaded_later_has_the_processor(tiny, tmp_path):
    model = tiny()
    LoRA(4, 4, text_encoder=False).prepare(model)
    LoRA(4, 4, text_encoder=False).save(model, tmp_path, "other")
    loaded = tiny()
    load_adapters(loaded, [tmp_path, tmp_path], [0.0, 1.0])
    assert {frozenset(processor.adapters) for processor in loaded.unet.attn_processors.values()} == {
        frozenset({"default", "adapter_1"})
    }

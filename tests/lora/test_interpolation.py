"""Interpolation of two adapters: linear in their weight changes, or in their factors."""

import pytest
import torch

from sdft.lora.interpolation import AdapterInterpolator
from sdft.lora.scaling import load_adapters
from sdft.methods.lora import LoRA

LAYER = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"


def save_random_adapter(tiny, folder, seed: int, std: float = 0.3, **options):
    model, method = tiny(), LoRA(**{"rank": 4, "alpha": 8, "text_encoder": True} | options)
    method.prepare(model)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
    method.save(model, folder, "one")
    return folder


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    return [save_random_adapter(tiny, tmp_path_factory.mktemp("a"), seed) for seed in (1, 2)]


def build_interpolator(tiny, files, mode: str):
    model = tiny()
    return model, AdapterInterpolator(model, load_adapters(model, files), mode)


def compute_change(model, x: torch.Tensor) -> torch.Tensor:
    layer = model.unet.get_submodule(LAYER)
    with torch.no_grad():
        return layer(x) - layer.base_layer(x)


@pytest.fixture
def x(tiny):
    return torch.randn(5, tiny().unet.get_submodule(LAYER).in_features, generator=torch.Generator().manual_seed(0))


def test_dw_is_linear_in_the_weight_changes(tiny, files, x):
    model, interpolator = build_interpolator(tiny, files, "dw")
    changes = {}
    for t in (0.0, 0.3, 1.0):
        interpolator.interpolate_unet(t)
        changes[t] = compute_change(model, x)
    torch.testing.assert_close(changes[0.3], 0.7 * changes[0.0] + 0.3 * changes[1.0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["dw", "factors"])
def test_the_ends_are_the_single_adapters_and_disabled_is_the_base(tiny, files, x, mode):
    model, interpolator = build_interpolator(tiny, files, mode)
    interpolator.interpolate_unet(0.5)
    for end, file in enumerate(files):
        single = tiny()
        load_adapters(single, [file])
        interpolator.interpolate_unet(float(end))
        torch.testing.assert_close(compute_change(model, x), compute_change(single, x), atol=1e-5, rtol=1e-5)
        interpolator.select_text_encoder(end)
        ids = model.tokenize(["two words"])
        with torch.no_grad():
            torch.testing.assert_close(
                model.encode_text(ids)["context"], single.encode_text(ids)["context"], atol=1e-5, rtol=1e-5
            )
    interpolator.disable()
    assert compute_change(model, x).abs().max() == 0
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(ids)["context"], tiny().encode_text(ids)["context"], atol=1e-6, rtol=0
        )


@pytest.mark.slow
def test_every_text_encoder_gets_the_adapter_of_an_end(small_xl, tmp_path):
    files = [save_random_adapter(small_xl, tmp_path / str(seed), seed) for seed in (1, 2)]
    model, interpolator = build_interpolator(small_xl, files, "dw")
    for end, file in enumerate(files):
        single = small_xl()
        load_adapters(single, [file])
        interpolator.select_text_encoder(end)
        for part, network in model.text_encoders.items():
            layer = "layers.0.self_attn.q_proj"
            found, expected = (
                next(m for name, m in net.named_modules() if name.endswith(layer))
                for net in (network, single.parts[part])
            )
            x = torch.randn(2, found.in_features)
            torch.testing.assert_close(found(x), expected(x), atol=1e-5, rtol=1e-5)


def test_interpolating_factors_differs_from_interpolating_changes(tiny, files, x):
    model, interpolator = build_interpolator(tiny, files, "factors")
    (a0, a1), (b0, b1) = {id(layer): f for layer, f in interpolator.factors}[id(model.unet.get_submodule(LAYER))]
    interpolator.interpolate_unet(0.25)
    a, b = 0.75 * a0 + 0.25 * a1, 0.75 * b0 + 0.25 * b1
    torch.testing.assert_close(compute_change(model, x), x @ a.T @ b.T, atol=1e-5, rtol=1e-4)
    other, linear = build_interpolator(tiny, files, "dw")
    linear.interpolate_unet(0.25)
    assert not torch.allclose(compute_change(other, x), compute_change(model, x), atol=1e-2)


def test_factors_account_for_different_alphas(tiny, files, x, tmp_path):
    stronger = save_random_adapter(tiny, tmp_path, 3, alpha=20)
    model, interpolator = build_interpolator(tiny, [files[0], stronger], "factors")
    interpolator.interpolate_unet(1.0)
    single = tiny()
    load_adapters(single, [stronger])
    torch.testing.assert_close(compute_change(model, x), compute_change(single, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2}, "lora=factors: .*4 and 2"),
        ({"unet_targets": ["to_q"]}, "lora=factors: only one adapter"),
        ({"use_dora": True}, "lora=factors: DoRA"),
    ],
)
def test_factors_that_cannot_be_paired_raise(tiny, files, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build_interpolator(tiny, [files[0], save_random_adapter(tiny, tmp_path, 3, **options)], "factors")

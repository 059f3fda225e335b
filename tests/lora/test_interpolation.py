"""Two adapters at any share: linear in what they change, or in their factors."""

import pytest
import torch

from sdft.lora.interpolation import AdapterInterpolator
from sdft.lora.scaling import load_adapters
from sdft.methods.lora import LoRA

LAYER = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"


def adapter(tiny, folder, seed: int, std: float = 0.3, **words):
    model, method = tiny(), LoRA(**{"rank": 4, "alpha": 8, "text_encoder": True} | words)
    method.prepare(model)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
    method.save(model, folder, "one")
    return folder


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    return [adapter(tiny, tmp_path_factory.mktemp("a"), seed) for seed in (1, 2)]


def blended(tiny, files, kind: str):
    model = tiny()
    return model, AdapterInterpolator(model, load_adapters(model, files), kind)


def change(model, x: torch.Tensor) -> torch.Tensor:
    layer = model.unet.get_submodule(LAYER)
    with torch.no_grad():
        return layer(x) - layer.base_layer(x)


@pytest.fixture
def x(tiny):
    return torch.randn(5, tiny().unet.get_submodule(LAYER).in_features, generator=torch.Generator().manual_seed(0))


def test_weights_are_linear_in_what_adapters_change(tiny, files, x):
    model, blend = blended(tiny, files, "dw")
    changes = {}
    for share in (0.0, 0.3, 1.0):
        blend.interpolate_unet(share)
        changes[share] = change(model, x)
    torch.testing.assert_close(changes[0.3], 0.7 * changes[0.0] + 0.3 * changes[1.0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dw", "factors"])
def test_the_ends_are_each_adapter_alone_and_off_is_the_base(tiny, files, x, kind):
    model, blend = blended(tiny, files, kind)
    blend.interpolate_unet(0.5)  # and back
    for end, file in enumerate(files):
        alone = tiny()
        load_adapters(alone, [file])
        blend.interpolate_unet(float(end))
        torch.testing.assert_close(change(model, x), change(alone, x), atol=1e-5, rtol=1e-5)
        blend.select_text_encoder(end)
        ids = model.tokenize(["two words"])
        with torch.no_grad():
            torch.testing.assert_close(model.condition(ids), alone.condition(ids), atol=1e-5, rtol=1e-5)
    blend.disable()
    assert change(model, x).abs().max() == 0
    with torch.no_grad():
        torch.testing.assert_close(model.condition(ids), tiny().condition(ids), atol=1e-6, rtol=0)


def test_factors_are_interpolated_apart_which_is_another_thing(tiny, files, x):
    model, blend = blended(tiny, files, "factors")
    (a0, a1), (b0, b1) = {id(layer): f for layer, f in blend.factors}[id(model.unet.get_submodule(LAYER))]
    blend.interpolate_unet(0.25)
    a, b = 0.75 * a0 + 0.25 * a1, 0.75 * b0 + 0.25 * b1
    torch.testing.assert_close(change(model, x), 2 * x @ a.T @ b.T, atol=1e-5, rtol=1e-4)
    other, linear = blended(tiny, files, "dw")
    linear.interpolate_unet(0.25)
    assert not torch.allclose(change(other, x), change(model, x), atol=1e-2)


def test_factors_of_adapters_of_other_strength_end_where_they_should(tiny, files, x, tmp_path):
    stronger = adapter(tiny, tmp_path, 3, alpha=20)
    model, blend = blended(tiny, [files[0], stronger], "factors")
    blend.interpolate_unet(1.0)
    alone = tiny()
    load_adapters(alone, [stronger])
    torch.testing.assert_close(change(model, x), change(alone, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"rank": 2}, "ranks 4 and 2; choose lora=dw"),
        ({"unet_targets": ["to_q"]}, "is in one adapter alone; choose lora=dw"),
        ({"use_dora": True}, "a DoRA is more than two factors; choose lora=dw"),
    ],
)
def test_factors_that_cannot_be_paired_are_refused(tiny, files, tmp_path, words, told):
    with pytest.raises(ValueError, match=told):
        blended(tiny, [files[0], adapter(tiny, tmp_path, 3, **words)], "factors")

"""Several LoRA files change a model by the weighted sum of their changes; any adapter at scale 0 is exactly the base."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdft.lora.scaling import disable_adapters, load_adapters, scale_adapters, set_adapter_scales
from sdft.methods.lora import LoRA


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Two random adapters of different rank, alpha and targets."""
    folders = []
    for seed, options in enumerate(
        [{"rank": 4, "alpha": 2}, {"rank": 2, "alpha": 6, "unet_targets": ["to_q"], "text_encoder": False}]
    ):
        folder, model, method = tmp_path_factory.mktemp("adapter"), tiny(), LoRA(**options)
        torch.manual_seed(seed)
        method.prepare(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        method.save(model, folder, "one")
        folders.append(folder)
    return folders


def predict(model) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 4, 4, generator=rng)
    with torch.no_grad():
        return model.predict(latents, torch.tensor([10, 800]), model.condition_prompts(["a cat", "two"]))


def predict_with_adapters(tiny, *args) -> torch.Tensor:
    model = tiny()
    load_adapters(model, *args)
    return predict(model)


def test_one_file_equals_method_load_and_weight_zero_is_the_base(tiny, files):
    model = tiny()
    LoRA(rank=4, alpha=2).load(model, files[0])
    assert torch.equal(predict_with_adapters(tiny, files[:1]), predict(model))
    torch.testing.assert_close(predict_with_adapters(tiny, files, [0.0, 0.0]), predict(tiny()), atol=1e-6, rtol=0)
    assert not torch.allclose(predict_with_adapters(tiny, files[:1]), predict(tiny()), atol=1e-3)


def test_layers_change_by_the_weighted_sum(tiny, files):
    model = tiny()
    load_adapters(model, files, [0.7, -0.4])
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    changes = []
    for folder in files:
        tensors = load_file(folder / "pytorch_lora_weights.safetensors")
        changes.append(tensors[f"unet.{layer}.lora_B.weight"] @ tensors[f"unet.{layer}.lora_A.weight"])
    module = model.unet.get_submodule(layer)
    x = torch.randn(3, module.in_features)
    expected = module.base_layer(x) + x @ (0.7 * changes[0] - 0.4 * changes[1]).T
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


def test_kohya_files_and_any_order_give_the_same(tiny, files):
    kohya = [folder / "one-kohya.safetensors" for folder in files]
    expected = predict_with_adapters(tiny, files, [0.5, 1.5])
    torch.testing.assert_close(predict_with_adapters(tiny, kohya, [0.5, 1.5]), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predict_with_adapters(tiny, files[::-1], [1.5, 0.5]), expected, atol=1e-5, rtol=1e-5)


def test_invalid_weights_and_files_raise(tiny, files, tmp_path):
    with pytest.raises(ValueError, match=r"weights=\[1.0\]: 1 for 2 "):
        load_adapters(tiny(), files, [1.0])
    with pytest.raises(ValueError, match=r"weights=\[nan\]: "):
        load_adapters(tiny(), files[:1], [float("nan")])
    tensors = load_file(files[0] / "pytorch_lora_weights.safetensors")
    save_file(
        {key: torch.randn(*weight.shape[:-1], 7) for key, weight in tensors.items()}, tmp_path / "other.safetensors"
    )
    with pytest.raises(ValueError, match="other.safetensors: does not fit"):
        load_adapters(tiny(), [files[1], tmp_path / "other.safetensors"])


KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "loha": {"adapter_type": "loha"},
    "lokr": {"adapter_type": "lokr"},
}


def build_adapted_model(tiny, kind: str, rank: int = 4, alpha: float = 3):
    """A model with an adapter in training, all of whose weights are random."""
    model, method = tiny(), LoRA(rank=rank, alpha=alpha, **KINDS[kind])
    method.prepare(model)
    randomize_trainable_weights(model)
    return model, method


def randomize_trainable_weights(model) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter + 0.2 * torch.randn_like(parameter)


@pytest.fixture(scope="module", params=KINDS)
def adapter_file(request, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, method = build_adapted_model(tiny, request.param)
    method.save(model, folder, "one")
    return folder


def test_scale_zero_is_exactly_the_base_for_files_of_every_kind(tiny, adapter_file):
    model, base = tiny(), predict(tiny())
    load_adapters(model, [adapter_file])
    full = predict(model)
    with scale_adapters(model, 0.0):
        assert torch.equal(predict(model), base)
    with scale_adapters(model, {"default": 0.5}):
        half = predict(model)
    assert torch.equal(predict(model), full) and not any(p.requires_grad for p in model.parameters())
    assert not torch.allclose(half, full, atol=1e-3) and not torch.allclose(half, base, atol=1e-3)
    set_adapter_scales(model, {"default": 0.5})
    assert torch.equal(predict(model), half)
    assert torch.equal(predict_with_adapters(tiny, [adapter_file], [0.0]), base)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pissa"])  # PiSSA changes the base while training
def test_scale_zero_is_exactly_the_base_in_training(tiny, kind):
    model, _ = build_adapted_model(tiny, kind)
    base, full, trainable = predict(tiny()), predict(model), [p.requires_grad for p in model.parameters()]
    for context in (scale_adapters(model, 0.0), disable_adapters(model)):
        with context:
            assert torch.equal(predict(model), base)
            assert [p.requires_grad for p in model.parameters()] == trainable
        assert torch.equal(predict(model), full)
    assert [p.requires_grad for p in model.parameters()] == trainable and any(trainable)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("dora", "pissa")])
def test_the_change_of_a_layer_is_proportional_to_its_scale(tiny, kind):
    model, _ = build_adapted_model(tiny, kind)
    layer = model.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    x, changes = torch.randn(3, layer.in_features), {}
    for scale in (1.0, 0.25, -2.0):
        with scale_adapters(model.unet, scale), torch.no_grad():
            changes[scale] = layer(x) - layer.base_layer(x)
    for scale, change in changes.items():
        torch.testing.assert_close(change, scale * changes[1.0], atol=1e-4, rtol=1e-4)


def test_adapters_at_zero_leave_the_others_unchanged(tiny, files, tmp_path):
    model, method = build_adapted_model(tiny, "dora")
    method.save(model, tmp_path, "one")
    both = tiny()
    load_adapters(both, [tmp_path, files[0]])
    expected = predict_with_adapters(tiny, files[:1])
    with scale_adapters(both, {"default": 0.0}):
        assert torch.equal(predict(both), expected)
        with scale_adapters(both, 0.0):
            assert torch.equal(predict(both), predict(tiny()))
        assert torch.equal(predict(both), expected)
    assert not torch.allclose(predict(both), expected, atol=1e-3)


def test_gradients_do_not_notice_a_disabled_adapter_within_the_step(tiny):
    gradients = []
    for disable in (False, True):
        model, _ = build_adapted_model(tiny, "lora")
        context = model.condition_prompts(["a cat"])
        output = model.predict(torch.ones(1, 4, 4, 4), torch.tensor([10]), context)
        if disable:
            with disable_adapters(model):
                predict(model)
        output.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)) and gradients[0][0].any()

"""Several loaded LoRA files change a model by the weighted sum of their changes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdft.lora.scaling import load_adapters
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
        return model.predict(latents, torch.tensor([10, 800]), model.condition(model.tokenize(["a cat", "two"])))


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
    for folder, scale in zip(files, (2 / 4, 6 / 2), strict=True):
        tensors = load_file(folder / "pytorch_lora_weights.safetensors")
        changes.append(scale * tensors[f"unet.{layer}.lora_B.weight"] @ tensors[f"unet.{layer}.lora_A.weight"])
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

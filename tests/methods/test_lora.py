"""LoRA trains the selected layers, starts as the base, and raises for targets that would train nothing."""

import pytest
import torch

from sdft.methods.lora import LoRA


def predict(model):
    torch.manual_seed(1)
    with torch.no_grad():
        context = model.condition_prompts(["a handwritten five in red ink"])
        return model.predict(torch.randn(1, 4, 8, 8), torch.tensor([400]), context)


def test_the_initial_model_equals_the_base_exactly(tiny):  # S0-03
    model = tiny()
    before = predict(model)
    LoRA(4, 8).prepare(model)
    assert torch.equal(predict(model), before)


def test_only_a_and_b_are_trainable(tiny):  # S0-02
    model = tiny()
    LoRA(4, 4).prepare(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert {name.split(".")[0] for name in names} == {"unet", "clip_l"}


def test_the_text_encoder_is_optional(tiny):
    model = tiny()
    LoRA(4, 4, text_encoder=False).prepare(model)
    assert not any(p.requires_grad for p in model.clip_l.parameters())


def test_a_is_gaussian_with_one_over_rank_and_b_is_zero(tiny):
    model = tiny()
    LoRA(16, 16).prepare(model)
    a = torch.cat([p.flatten() for n, p in model.unet.named_parameters() if ".lora_A." in n])
    b = torch.cat([p.flatten() for n, p in model.unet.named_parameters() if ".lora_B." in n])
    assert a.std().item() == pytest.approx(1 / 16, rel=0.05) and not b.any()


def test_alpha_scales_the_update(tiny):
    changes = []
    for alpha in (4.0, 8.0):
        model = tiny()
        base = predict(model)
        torch.manual_seed(0)
        LoRA(4, alpha, text_encoder=False, unet_targets=["conv_out"]).prepare(model)
        for name, p in model.unet.named_parameters():
            if ".lora_B." in name:
                torch.manual_seed(2)
                p.data.normal_()
        changes.append(predict(model) - base)
    assert torch.allclose(changes[1], 2 * changes[0], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unet_targets": ["to_q", "to_x"]}, "method.unet_targets: 'to_x' .* unet; .*to_k"),
        ({"text_encoder_targets": ["to_q"]}, "method.text_encoder_targets: 'to_q' .* clip_l; .*q_proj"),
    ],
)
def test_a_pattern_that_matches_no_layer_raises(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        LoRA(4, 4, **options).check(tiny(), [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0: "),
        ({"alpha": 0}, "alpha=0"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
        ({"init_lora_weights": "zeros"}, "method.init_lora_weights=zeros: .*gaussian, kaiming"),
        ({"adapter_type": "ia3"}, "method.adapter_type=ia3: .*lora, loha, lokr"),
        ({"adapter_type": "loha", "use_dora": True}, "method.use_dora=True: .*method.adapter_type=lora.*loha"),
        ({"init_lora_weights": "pissa", "dropout": 0.1}, "method.init_lora_weights=pissa: .*dropout"),
        ({"loraplus_lr_ratio": 0}, "method.loraplus_lr_ratio=0"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**{"rank": 4, "alpha": 4} | options)


def test_lora_plus_multiplies_the_learning_rate_of_b(tiny):
    method = LoRA(4, 4, loraplus_lr_ratio=16.0)
    assert method.get_lr_multiplier("unet.to_q.lora_A.default.weight") == 1
    assert method.get_lr_multiplier("unet.to_q.lora_B.default.weight") == 16


def test_pissa_raises_for_convolutions(tiny):
    with pytest.raises(ValueError, match="method.unet_targets: 'conv1' .*linear"):
        LoRA(4, 4, init_lora_weights="pissa", unet_targets=["to_q", "conv1"]).check(tiny(), [])


def test_pissa_starts_from_the_largest_singular_vectors(tiny):
    model = tiny()
    weight = model.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q").weight.clone()
    LoRA(4, 4, init_lora_weights="pissa").prepare(model)
    layer = model.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    left, values, right = torch.linalg.svd(weight)
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(change, left[:, :4] @ torch.diag(values[:4]) @ right[:4], atol=1e-5)

"""Parameter counts of the published architectures on the meta device; tokenizing, encoding and prediction types."""

import pytest
import torch

from sdft.methods.lora import LoRA
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import build_untrained, load_stable_diffusion


def build_on_meta(architecture: str):
    with torch.device("meta"):
        return build_untrained(ASSETS_FOLDER / architecture)


def count_parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def count_trainable(module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_sd15_has_the_published_number_of_parameters():  # S0-26
    model = build_on_meta("sd15")
    assert count_parameters(model.clip_l) == 123_060_480
    assert count_parameters(model.vae) == 83_653_863
    assert count_parameters(model.unet) == 859_520_964


def test_sd21_has_the_published_number_of_parameters():  # S2-32
    model = build_on_meta("sd21")
    assert count_parameters(model.unet) == 865_910_724
    assert count_parameters(model.clip_l) == 340_387_840
    assert model.prediction_type == "v_prediction"


@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16, 32, 64, 128])
def test_lora_of_sd15_has_199296_r_and_73728_r_trainable_parameters(rank):  # S0-33, S1-13
    model = build_on_meta("sd15")
    with torch.device("meta"):
        LoRA(rank, rank).prepare(model)
    assert count_trainable(model.unet) == 199_296 * rank
    assert count_trainable(model.clip_l) == 73_728 * rank


def test_lora_of_sd15_has_256_tensors_on_32_attentions():
    model = build_on_meta("sd15")
    with torch.device("meta"):
        LoRA(4, 4).prepare(model)
    assert len([p for p in model.unet.parameters() if p.requires_grad]) == 256
    assert len(model.unet.attn_processors) == 32
    assert count_trainable(model.unet) == 797_184  # S1-13


def test_lora_fractions_match_the_published_ones():  # S0-32, S0-33
    model = build_on_meta("sd15")
    with torch.device("meta"):
        LoRA(32, 16).prepare(model)
    unet, text = count_trainable(model.unet), count_trainable(model.clip_l)
    assert (unet, text) == (6_377_472, 2_359_296)
    assert f"{unet / count_parameters(model.unet):.4%}" == "0.7365%"
    assert f"{text / count_parameters(model.clip_l):.4%}" == "1.8811%"


def test_the_clip_tokenizer_works_offline():
    from sdft.models.clip_tokenizer import load_clip_tokenizer

    tokenizer = load_clip_tokenizer(ASSETS_FOLDER / "sd15" / "tokenizer")
    assert len(tokenizer) == 49_408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.pad_token_id == 49407 and tokenizer.model_max_length == 77


def test_the_terminal_snr_of_the_sd_schedule_is_not_zero(tiny):
    assert tiny().noise_process.alphas_cumprod[-1].item() == pytest.approx(0.0046601, abs=1e-6)


def test_a_new_model_is_frozen_and_in_eval_mode(tiny):
    model = tiny()
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_the_prediction_type_comes_from_the_model_and_can_be_overridden(tiny):
    assert tiny().prediction_type == "epsilon"
    assert tiny(prediction_type="v_prediction").build_pipeline().scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match=r"model.prediction_type=sample: choose one of epsilon, v_prediction"):
        tiny(prediction_type="sample")


def test_a_model_folder_without_a_unet_is_rejected(tmp_path):
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match=f"model.name={tmp_path}: no unet/"):
        load_stable_diffusion(str(tmp_path))


def test_a_missing_folder_is_not_requested_from_the_hub():
    with pytest.raises(ValueError, match=r"model.name=./nowhere: no such folder"):
        load_stable_diffusion("./nowhere")


def test_a_resolution_that_the_vae_cannot_divide_is_rejected(tiny):
    with pytest.raises(ValueError, match="resolution=30: .* 8.* 32"):
        tiny().latent_shape(30)


def test_encoding_uses_the_noise_argument(tiny):
    model, images = tiny(), torch.rand(2, 3, 32, 32) * 2 - 1
    noise = torch.randn(2, 4, 8, 8)
    posterior = model.vae.encode(images).latent_dist
    expected = (posterior.mean + posterior.std * noise) * model.vae.config.scaling_factor
    assert torch.allclose(model.latents(*model.moments(images), noise), expected, atol=1e-6)


def test_a_long_prompt_is_encoded_in_chunks(tiny):
    one, three = tiny(), tiny(prompt_chunks=3)
    long = " ".join(["red"] * 70)
    ids = three.tokenize([long, "red"])
    assert ids.shape == (2, 3 * one.chunk_length) and three.max_prompt_tokens == 3 * (one.chunk_length - 2) + 2
    num_tokens = len(one.tokenizer(long, add_special_tokens=False, verbose=False).input_ids)
    special = torch.isin(
        ids[0], torch.tensor([one.tokenizer.bos_token_id, one.tokenizer.eos_token_id, one.tokenizer.pad_token_id])
    )
    assert int((~special).sum()) == num_tokens  # nothing is truncated
    context = three.encode_text(ids)["context"]
    assert torch.allclose(
        context[1, : one.chunk_length], one.encode_text(one.tokenize(["red"]))["context"][0], atol=1e-6
    )
    assert context.shape == (2, 3 * one.chunk_length, one.clip_l.config.hidden_size)
    with pytest.raises(ValueError, match="prompt_chunks=0: "):
        tiny(prompt_chunks=0)

"""LoRA files of Stable Diffusion XL are written with the names that other programs read; the tools work on all parts."""

import re
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from xl_lora import ALL_LAYERS, ATTENTION, SD15, SDXL, TINY_XL, TinyXL, compare, draw_layers, list_layers, save_layers

from sdft.lora.architecture import get_layer
from sdft.lora.families import PARTS
from sdft.lora.file import read_lora_file
from sdft.lora.formats import load_lora
from sdft.lora.interpolation import AdapterInterpolator
from sdft.lora.key_names import find_layers, parse_tensor_name
from sdft.lora.merging import extract_lora, merge_lora_files
from sdft.lora.mixing import mix_lora_files
from sdft.lora.resizing import resize_lora_file
from sdft.lora.scaling import load_adapters
from sdft.lora.summary import format_lora_summary
from sdft.methods.lora import LoRA
from sdft.models.conditioning import describe_geometry
from sdft.models.precision import set_precision

KOHYA_TARGETS = re.compile(r"\.(attentions|self_attn|mlp)\.")
SDXL_UNET_NAME = re.compile(
    r"lora_unet_((input|output)_blocks_[0-8]_[012]|middle_block_[012])_(in_layers_2|out_layers_3|emb_layers_1|"
    r"skip_connection|op|conv|proj_in|proj_out|transformer_blocks_[0-9]_(attn[12]_to_([qkv]|out_0)|ff_net_(0_proj|2)))"
    r"|lora_unet_(time_embed_[02]|label_emb_0_[02]|input_blocks_0_0|out_2)"
)
TEXT_NAME = re.compile(r"lora_te[12]_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])")
EVERY_KIND = re.compile(
    r"(to_k|to_out\.0|ff\.net\.2|proj_in|conv1|conv_shortcut|time_emb_proj|linear_1|conv_in|conv_out|conv|out_proj|fc1)$"
)
DORA_LAYERS = re.compile(r"(to_q|q_proj|conv1)$")


def test_every_module_has_its_kohya_name_and_is_found_by_it():
    names = {
        (part, layer): SDXL.get_kohya_name(part, layer)
        for part, layers in SDXL.shapes.items()
        for layer in layers
        if layer != "text_projection"
    }
    assert len(set(names.values())) == len(names) and SDXL.get_kohya_name("text_encoder_2", "text_projection") is None
    for (part, layer), name in names.items():
        assert (SDXL_UNET_NAME if part == "unet" else TEXT_NAME).fullmatch(name), name
        for alias in (name, f"{part}.{layer}", f"{part}.{layer.removeprefix('text_model.')}"):
            assert find_layers(SDXL.index, alias) == [(part, layer)]
    counts = {part: len(list_layers(SDXL, part, KOHYA_TARGETS)) for part in SDXL.shapes}
    assert counts == {"unet": 722, "text_encoder": 72, "text_encoder_2": 192}
    for part, count in {"unet": 1_451_520, "text_encoder": 73_728, "text_encoder_2": 327_680}.items():
        assert sum(sum(shape) for shape in list_layers(SDXL, part, ATTENTION).values()) == count
    assert SD15.get_kohya_name("unet", "mid_block.attentions.0.proj_in") == "lora_unet_mid_block_attentions_0_proj_in"


def test_diffusers_finds_every_module_by_its_kohya_name():
    tensors = {}
    for part in SDXL.shapes:
        for layer, shape in list_layers(SDXL, part, KOHYA_TARGETS).items():
            name = SDXL.get_kohya_name(part, layer)
            for side, size in (("down", (4, shape[1])), ("up", (shape[0], 4))):
                tensors[f"{name}.lora_{side}.weight"] = torch.empty(size, device="meta")
    config = SimpleNamespace(layers_per_block=2)
    state, _ = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=config)
    assert len(state) == len(tensors) == 2 * (722 + 264)
    for key, tensor in state.items():
        name, side = parse_tensor_name(key)
        (layer,) = find_layers(SDXL.index, name)
        assert tensor is tensors[f"{SDXL.get_kohya_name(*layer)}.lora_{side}.weight"]


@pytest.mark.parametrize("targets", [EVERY_KIND, DORA_LAYERS], ids=["LoRA", "DoRA"])
def test_both_formats_give_the_adapter_s_own_prediction(tmp_path, targets):
    parts, model, base = draw_layers(TINY_XL, targets), TinyXL(), TinyXL().predict()
    for part, layers in parts.items():
        for name, layer in layers.items():
            weight = get_layer(part, model.components[part], name).weight
            if targets is DORA_LAYERS:
                layer.magnitude = weight.flatten(1).norm(dim=1) * torch.linspace(0.5, 2, len(weight))
            weight.copy_(layer.apply_to(weight))
    expected = model.predict()
    assert (expected - base).abs().max() > 0.1
    for file_format, path in save_layers(parts, tmp_path).items():
        file, model = read_lora_file(path, [TINY_XL]), TinyXL()
        compare(file, parts)
        if file_format == "diffusers" or targets is not DORA_LAYERS:  # its converter drops magnitudes of kohya's files
            model.build_pipeline().load_lora_weights(tmp_path, weight_name=path.name)
            assert (model.predict() - expected).abs().max() < 1e-5, file_format
    for read in (lambda model: load_lora(model, path), lambda model: merge_lora_files(model, [file], [1.0])):
        read(model := TinyXL())
        assert (model.predict() - expected).abs().max() < 1e-5
    names = {key.split(".")[0] for key in load_file(tmp_path / "mine-kohya.safetensors")}
    assert names == {TINY_XL.get_kohya_name(part, name) for part, layers in parts.items() for name in layers}


def test_the_tools_work_on_all_parts(tmp_path):
    first, second = draw_layers(TINY_XL, rank=2), draw_layers(TINY_XL, ALL_LAYERS, rank=3)
    files = [
        read_lora_file(save_layers(parts, tmp_path / str(number))["kohya"], [TINY_XL])
        for number, parts in enumerate((first, second))
    ]
    mixed = mix_lora_files(files, [0.25, 0.75]).parts
    compare(read_lora_file(save_layers(mixed, tmp_path / "mix")["diffusers"], [TINY_XL]), mixed)
    for part, layers in mixed.items():
        for name, layer in layers.items():
            terms = [
                weight * parts[part][name].compute_delta()
                for weight, parts in ((0.25, first), (0.75, second))
                if name in parts[part]
            ]
            torch.testing.assert_close(layer.compute_delta(), sum(terms), atol=1e-6, rtol=1e-6)
    resized = resize_lora_file(files[0], 1, None)
    assert resized.ranks == [1] and set(resized.parts) == set(PARTS)
    base, tuned = TinyXL(), TinyXL()
    merge_lora_files(tuned, files[:1], [1.0])
    extracted, fraction = extract_lora(
        base, tuned, 2, targets={"unet": ["to_q"], "text_encoder": None, "text_encoder_2": ["q_proj"]}
    )
    assert fraction < 1 and {part: len(layers) for part, layers in extracted.parts.items()} == {
        "unet": len(list_layers(TINY_XL, "unet", re.compile("to_q$"))),
        "text_encoder": 4,
        "text_encoder_2": 1,
    }
    key = "text_model.encoder.layers.0.self_attn.q_proj"
    expected = first["text_encoder_2"][key].compute_delta()
    torch.testing.assert_close(extracted.parts["text_encoder_2"][key].compute_delta(), expected, atol=1e-6, rtol=1e-6)
    summary = "\n".join(format_lora_summary(files[0]))
    for text in (
        "fits       tiny-xl",
        "targets    text_encoder_2: ",
        "\ntext layer 0 ",
        "\ntext 2 layer 0 ",
        "\ndown 1 ",
    ):
        assert text in summary


def test_the_projection_of_the_second_text_encoder_is_read_and_never_written_for_kohya(tmp_path, capsys):
    """OneTrainer adapts it; kohya's networks do not have it."""
    parts = draw_layers(TINY_XL, re.compile("text_projection|q_proj"))
    (layer,) = [layer for name, layer in parts["text_encoder_2"].items() if name == "text_projection"]
    name = "lora_te2_text_projection"
    tensors = {
        f"{name}.lora_down.weight": layer.down,
        f"{name}.lora_up.weight": layer.up,
        f"{name}.alpha": torch.tensor(layer.alpha),
    }
    save_file(tensors, tmp_path / "onetrainer.safetensors")
    compare(
        read_lora_file(tmp_path / "onetrainer.safetensors", [TINY_XL]), {"text_encoder_2": {"text_projection": layer}}
    )
    paths = save_layers(parts, tmp_path)
    assert "text_encoder_2.text_projection is left out of the kohya format" in capsys.readouterr().err
    compare(read_lora_file(paths["diffusers"], [TINY_XL]), parts)
    assert not [key for key in load_file(paths["kohya"]) if "text_projection" in key]
    loaded, merged = TinyXL(), TinyXL()
    load_lora(loaded, paths["diffusers"])
    merge_lora_files(merged, [read_lora_file(paths["diffusers"], [TINY_XL])], [1.0])
    assert (
        (loaded.predict() - merged.predict()).abs().max() < 1e-5 < (merged.predict() - TinyXL().predict()).abs().max()
    )


@torch.no_grad()
def test_saved_adapters_give_their_own_prediction_also_interpolated(small_xl, tmp_path):
    folders = []
    for kind in ("lora", "lokr"):
        model, method = small_xl(), LoRA(2, 3, text_encoder=True, adapter_type=kind, unet_targets=["to_k", "conv1"])
        method.prepare(model)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "lokr_" in name:
                parameter.data += 0.2 * torch.randn_like(parameter)
        folders.append((tmp_path / kind, compute_outputs(model)))
        method.save(model, tmp_path / kind, "mine")
    (folder, expected), (other, other_expected) = folders
    plain, both = small_xl(), small_xl()
    plain.build_pipeline().load_lora_weights(folder, weight_name="mine-kohya.safetensors")
    torch.testing.assert_close(compute_outputs(plain), expected, atol=1e-5, rtol=1e-5)
    interpolator = AdapterInterpolator(both, load_adapters(both, [folder, other / "mine-kohya.safetensors"]))
    for end, outputs in enumerate((expected, other_expected)):
        interpolator.interpolate_unet(end)
        interpolator.select_text_encoder(end)
        torch.testing.assert_close(compute_outputs(both), outputs, atol=1e-5, rtol=1e-5)


def compute_outputs(model) -> dict[str, torch.Tensor]:
    """In fp64, so that differences are those of the weights, not of the order of fp32 sums."""
    set_precision(model, torch.float64)
    conditioning = model.condition_prompts(["a cat"], describe_geometry((64, 64)))
    noisy = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(1, 4, 8, 8)
    return {"unet": model.predict(noisy, torch.tensor([500]), conditioning), **conditioning.text}

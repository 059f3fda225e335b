"""LoRA files of Stable Diffusion XL are read with the names of every program, and those of another family are called so."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from xl_lora import (
    ALL_LAYERS,
    ATTENTION,
    SD15,
    SD21,
    SDXL,
    TINY_XL,
    TO_K,
    TinyXL,
    compare,
    draw_layers,
    list_layers,
    save_layers,
)

from sdft.apps.lora.lora_io import read_lora_files
from sdft.lora.architecture import get_layer
from sdft.lora.file import DIFFUSERS_FILE, read_lora_file
from sdft.lora.low_rank import build_low_rank_layer
from sdft.lora.mixing import mix_lora_files


def flatten(name: str) -> str:
    return name.replace(".", "_")


def name_in_comfyui(part: str, layer: str) -> str:
    prefix = {"text_encoder": "text_encoders.clip_l.transformer", "text_encoder_2": "text_encoders.clip_g.transformer"}
    return f"{prefix.get(part, 'diffusion_model')}.{TINY_XL.to_original_name(part, layer)}"


def name_in_omi(part: str, layer: str) -> str:
    prefix = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}.get(part, "unet")
    return f"{prefix}.{TINY_XL.to_original_name(part, layer)}"


KOHYA_SIDES, PEFT_SIDES = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
SCHEMES = {
    "kohya": (TINY_XL.get_kohya_name, KOHYA_SIDES),
    "OneTrainer, kohya with diffusers' blocks": (
        lambda part, layer: f"{TINY_XL.family.kohya_prefixes[part]}_{flatten(layer)}",
        KOHYA_SIDES,
    ),
    "diffusers": (lambda part, layer: f"{part}.{layer}", PEFT_SIDES),
    "diffusers, text_model left out": (lambda part, layer: f"{part}.{layer.removeprefix('text_model.')}", PEFT_SIDES),
    "diffusers before peft": (
        lambda part, layer: f"{part}.{layer}",
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ),
    "ComfyUI": (name_in_comfyui, KOHYA_SIDES),
    "OMI": (name_in_omi, KOHYA_SIDES),
    "SimpleTuner": (lambda _, layer: f"lycoris_{flatten(layer)}", KOHYA_SIDES),
    "peft": (lambda _, layer: f"base_model.model.{layer}", PEFT_SIDES),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_every_naming_scheme_is_read(tmp_path, scheme, dtype):
    """Names without the part are those of one of the text encoders by their shapes."""
    get_name, sides = SCHEMES[scheme]
    drawn = draw_layers(TINY_XL, ALL_LAYERS)
    bare = scheme in ("SimpleTuner", "peft")
    for parts in [{part: layers} for part, layers in drawn.items()] if bare else [drawn]:
        tensors = {}
        for part, layers in parts.items():
            for layer, value in layers.items():
                name = get_name(part, layer)
                tensors |= {name + sides[0]: value.down, name + sides[1]: value.up}
                tensors[f"{name}.alpha"] = torch.tensor(value.alpha, dtype=dtype)
        save_file(tensors, tmp_path / "x.safetensors")
        compare(read_lora_file(tmp_path / "x.safetensors", [TINY_XL]), parts)


def test_the_files_of_diffusers_own_writer_and_converter_are_read(tmp_path):
    from diffusers.utils import convert_state_dict_to_kohya
    from peft import LoraConfig, get_peft_model_state_dict

    model, options = TinyXL(), {}
    for part, network in model.components.items():
        network.add_adapter(LoraConfig(r=2, lora_alpha=5, target_modules=ATTENTION.pattern.replace("(", ".*(", 1)))
        for name, parameter in network.named_parameters():
            parameter.data += 0.1 * torch.randn_like(parameter) * ("lora_" in name)
        options[f"{part}_lora_layers"] = get_peft_model_state_dict(network)
        options[f"{part}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **options)
    file = read_lora_file(tmp_path, [TINY_XL])
    assert len(file.layers) == sum(len(list_layers(TINY_XL, part, ATTENTION)) for part in TINY_XL.shapes)
    for (part, name), layer in file.layers.items():
        expected = get_layer(part, model.components[part], name).get_delta_weight("default")
        torch.testing.assert_close(layer.compute_delta().float(), expected, atol=1e-6, rtol=1e-5)
    converted = convert_state_dict_to_kohya(load_file(tmp_path / DIFFUSERS_FILE))
    converted |= {key: torch.tensor(5) for key in converted if key.endswith("alpha")}
    save_file(converted, tmp_path / "kohya.safetensors")
    compare(read_lora_file(tmp_path / "kohya.safetensors", [TINY_XL]), file.parts)


def save_empty_file(path: Path, architecture, names: list[str], scheme: str = "kohya") -> Path:
    """A file of rank 1 that changes nothing in these layers."""
    tensors = {}
    for part, layer in names:
        shape = architecture.shapes[part][layer]
        name = architecture.get_kohya_name(part, layer) if scheme == "kohya" else f"{part}.{layer}"
        for side, size in zip(SIDES_BY_SCHEME[scheme], ((1, shape[1]), (shape[0], 1)), strict=True):
            tensors[name + side] = torch.zeros(size)
    save_file(tensors, path)
    return path


SIDES_BY_SCHEME = {"kohya": KOHYA_SIDES, "diffusers": PEFT_SIDES}
CROSS = [("unet", TO_K.format(0))]
OF_SDXL = {
    "deeper": [("unet", TO_K.format(1).replace("attn2", "attn1"))],
    "second text encoder": [("text_encoder_2", "text_model.encoder.layers.0.self_attn.q_proj")],
    "condition": [("unet", "add_embedding.linear_1")],
}


@pytest.mark.parametrize("scheme", SIDES_BY_SCHEME)
def test_a_file_of_another_family_is_called_so(tmp_path, scheme):
    for file, model, layers in [
        *((a, b, CROSS) for a in (SD15, SD21, SDXL) for b in (SD15, SD21, SDXL, TINY_XL) if a is not b),
        *((SDXL, b, layers) for b in (SD15, SD21) for layers in OF_SDXL.values()),
        (SD21, SD15, [("text_encoder", "text_model.encoder.layers.0.mlp.fc1")]),
    ]:
        path = save_empty_file(tmp_path / "x.safetensors", file, layers, scheme)
        name = re.escape(file.get_kohya_name(*layers[0]) if scheme == "kohya" else ".".join(layers[0]))
        expected = f"adapter={path}: is for {file.title} \\({name}\\); {model.name} is {model.family.name or 'another'}"
        with pytest.raises(ValueError, match=expected) as error:
            read_lora_file(path, [model])
        assert "\n" not in str(error.value)
        assert read_lora_file(path).architecture is file


def test_files_of_later_families_are_called_so_for_any_model(tmp_path):
    for key, name in {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1 lora_unet_double_blocks_0_img_attn_proj": "Flux",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1 lora_unet_joint_blocks_0_x_block_attn_proj": "Stable Diffusion 3",
    }.items():
        save_file({f"{part}.lora_down.weight": torch.zeros(1, 8) for part in key.split()}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=f"is for {name} .*Stable Diffusion 1, 2 and XL"):
            read_lora_file(tmp_path / "x.safetensors", [SDXL])


def test_the_header_names_the_base_and_decides_between_several(tmp_path):
    layer = TO_K.format(0).replace("attn2", "attn1")  # SD 1 has it, too
    for architecture, expected in (
        (SDXL, ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "1024x1024")),
        (SD15, ("sd_v1", "stable-diffusion-v1/lora", "512x512")),
        (SD21, ("sd_v2", None, None)),  # of 512 or 768 pixels
    ):
        shape = architecture.shapes["unet"][layer]
        layers = {"unet": {layer: build_low_rank_layer((torch.ones(shape[0], 1), torch.ones(1, shape[1])), shape)}}
        for path in save_layers(layers, tmp_path, architecture).values():
            file = read_lora_file(path)
            keys = ("ss_base_model_version", "modelspec.architecture", "modelspec.resolution")
            assert tuple(map(file.metadata.get, keys)) == expected and file.architecture is architecture


def test_files_of_few_layers_are_read_as_of_the_family_of_the_others(tmp_path):
    shared = [("unet", TO_K.format(0).replace("attn2", "attn1"))]
    paths = {
        name: save_empty_file(tmp_path / f"{name}.safetensors", architecture, layers)
        for name, architecture, layers in (("few", SDXL, shared), ("xl", SDXL, CROSS), ("sd", SD15, CROSS))
    }
    assert read_lora_files([paths["few"]], None)[0].architecture is SD15
    assert {file.architecture.name for file in read_lora_files([paths["few"], paths["xl"]], None)} == {"sdxl"}
    with pytest.raises(ValueError, match="xl.safetensors: architecture differs .*XL.*Stable Diffusion 1"):
        mix_lora_files(read_lora_files([paths["sd"], paths["xl"]], None), [0.5, 0.5])

"""LoRA files of Stable Diffusion XL have the names of every program, and those of another family are called so."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdft.apps.lora.lora_io import read_lora_files
from sdft.lora.architecture import get_layer, get_model_architecture, list_architectures
from sdft.lora.families import PARTS
from sdft.lora.file import DIFFUSERS_FILE, read_lora_file
from sdft.lora.formats import load_lora, save_lora
from sdft.lora.interpolation import AdapterInterpolator
from sdft.lora.key_names import find_layers, parse_tensor_name
from sdft.lora.low_rank import build_low_rank_layer
from sdft.lora.merging import extract_lora, merge_lora_files
from sdft.lora.mixing import mix_lora_files
from sdft.lora.resizing import resize_lora_file
from sdft.lora.scaling import load_adapters
from sdft.lora.state_dict import build_adapter_state
from sdft.lora.summary import format_lora_summary
from sdft.methods.lora import LoRA
from sdft.models.conditioning import describe_geometry

(SDXL,), (SD15,), (SD21,) = (list_architectures(name) for name in ("sdxl", "sd15", "sd21"))
ATTENTION = re.compile(r"(to_q|to_k|to_v|to_out\.0|q_proj|k_proj|v_proj|out_proj)$")
KOHYA_TARGETS = re.compile(r"\.(attentions|self_attn|mlp)\.")
SDXL_UNET_NAME = re.compile(
    r"lora_unet_((input|output)_blocks_[0-8]_[012]|middle_block_[012])_(in_layers_2|out_layers_3|emb_layers_1|"
    r"skip_connection|op|conv|proj_in|proj_out|transformer_blocks_[0-9]_(attn[12]_to_([qkv]|out_0)|ff_net_(0_proj|2)))"
    r"|lora_unet_(time_embed_[02]|label_emb_0_[02]|input_blocks_0_0|out_2)"
)
TEXT_NAME = re.compile(r"lora_te[12]_text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])")
TO_K = "down_blocks.1.attentions.0.transformer_blocks.{}.attn2.to_k"
SGM_TO_K = "lora_unet_input_blocks_4_1_transformer_blocks_{}_attn2_to_k"


def list_layers(architecture, part: str, pattern: re.Pattern) -> dict[str, tuple[int, ...]]:
    return {layer: shape for layer, shape in architecture.shapes[part].items() if pattern.search(layer)}


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


class TinyXL(nn.Module):
    """All layers of SDXL's kinds, with random weights: two attention blocks of different depth, two text encoders."""

    name = "tiny-xl"

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        text = {
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 99,
            "eos_token_id": 2,
            "bos_token_id": 1,
        }
        widths = {"text_encoder": 16, "text_encoder_2": 24}
        configs = {
            part: CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, projection_dim=width, **text)
            for part, width in widths.items()
        }
        unet = UNet2DConditionModel(
            block_out_channels=(8, 16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(1, 2, 4),
            norm_num_groups=4,
            cross_attention_dim=40,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        )
        encoders = CLIPTextModel(configs["text_encoder"]), CLIPTextModelWithProjection(configs["text_encoder_2"])
        self.components = nn.ModuleDict(dict(zip(PARTS, (unet, *encoders), strict=True)))
        self.requires_grad_(False).eval()

    def build_pipeline(self):
        scheduler, vae = EulerDiscreteScheduler(), AutoencoderKL(block_out_channels=(4,), norm_num_groups=4)
        return StableDiffusionXLPipeline(
            vae=vae, tokenizer=None, tokenizer_2=None, scheduler=scheduler, add_watermarker=False, **self.components
        )

    @torch.no_grad()
    def predict(self) -> torch.Tensor:
        """The outputs of all parts, in fp64."""
        unet, *encoders = self.double().components.values()
        ids = torch.tensor([[1, 5, 7, 9, 2]])
        outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
        context = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        noisy = torch.linspace(-1, 1, 4 * 16 * 16, dtype=torch.float64).reshape(1, 4, 16, 16)
        added = {"text_embeds": outputs[1].text_embeds, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        prediction = unet(noisy, 500, context, added_cond_kwargs=added).sample
        return torch.cat([prediction.flatten(), context.flatten(), outputs[1].text_embeds.flatten()])


TINY_XL = get_model_architecture(TinyXL())


def draw_layers(architecture, pattern: re.Pattern = ATTENTION, rank: int = 4) -> dict:
    """Random layers by part, of different alphas."""
    generator, parts = torch.Generator().manual_seed(rank), {}
    for part in architecture.shapes:
        for number, (name, shape) in enumerate(list_layers(architecture, part, pattern).items()):
            size = math.prod(shape[1:])
            factors = (torch.randn(n, generator=generator) * 0.3 for n in ((shape[0], rank), (rank, size)))
            parts.setdefault(part, {})[name] = layer = build_low_rank_layer(tuple(factors), shape)
            layer.alpha = 1.0 + number % 3
    return parts


def save_layers(parts: dict, folder, architecture=TINY_XL) -> dict[str, Path]:
    save_lora({part: build_adapter_state(part, layers) for part, layers in parts.items()}, folder, "mine", architecture)
    return {"diffusers": folder / DIFFUSERS_FILE, "kohya": folder / "mine-kohya.safetensors"}


def compare(file, parts: dict, atol: float = 1e-6) -> None:
    expected = {(part, name): layer for part, layers in parts.items() for name, layer in layers.items()}
    assert file.layers.keys() == expected.keys()
    for key, layer in expected.items():
        torch.testing.assert_close(file.layers[key].compute_delta(), layer.compute_delta(), atol=atol, rtol=1e-6)


ALL_LAYERS = re.compile("^(?!text_projection)")
EVERY_KIND = re.compile(
    r"(to_k|to_out\.0|ff\.net\.2|proj_in|conv1|conv_shortcut|time_emb_proj|linear_1|conv_in|conv_out|conv|out_proj|fc1)$"
)
DORA_LAYERS = re.compile(r"(to_q|q_proj|conv1)$")


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
    conditioning = model.double().condition_prompts(["a cat"], describe_geometry((64, 64)))
    noisy = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(1, 4, 8, 8)
    return {"unet": model.predict(noisy, torch.tensor([500]), conditioning), **conditioning.text}

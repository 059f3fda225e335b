"""Every program's names and adapter types are read as the change that they define; other files are called what they are."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdft.apps.lora.lora_io import read_lora_files
from sdft.lora.architecture import list_architectures
from sdft.lora.file import read_lora_file
from sdft.lora.formats import load_lora
from sdft.lora.layer_parsing import parse_layer
from sdft.lora.merging import merge_lora_files
from sdft.lora.summary import format_lora_summary
from sdft.methods.lora import LoRA

TINY = list_architectures("tiny-sd")
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 48 x 48
TO_OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"  # 48 x 48 x 3 x 3
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"  # 64 x 64
ORIGINAL_TO_Q, ORIGINAL_CONV = "input_blocks.1.1.transformer_blocks.0.attn1.to_q", "input_blocks.1.0.in_layers.2"
FLAT = {name: name.replace(".", "_") for name in (TO_Q, TO_OUT, CONV, TEXT, ORIGINAL_TO_Q, ORIGINAL_CONV)}
SIDES = {"kohya": ("down", "up"), "peft": ("A", "B")}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def build_lora(names: dict[str, str], sides: str = "kohya", form: str = ".lora_{}.weight", alpha: object = 2) -> tuple:
    """Tensors of rank 4 under `names` (canonical: in the file), and the changes by canonical name."""
    tensors, changes = {}, {}
    for layer, name in names.items():
        size, kernel = (64, ()) if layer == TEXT else (48, (3, 3) if layer == CONV else ())
        down, up = draw(4, size, *kernel), draw(size, 4, *[1] * len(kernel))
        for side, factor in zip(SIDES[sides], (down, up), strict=True):
            tensors[name + form.format(side)] = factor
        if alpha is not None:
            tensors[f"{name}.alpha"] = alpha.clone() if isinstance(alpha, torch.Tensor) else torch.tensor(float(alpha))
        scale = 1 if alpha is None else 2 / 4
        changes[layer] = scale * (up.flatten(1) @ down.flatten(1)).reshape(size, size, *kernel)
    return tensors, changes


PARTS = {TO_Q: f"lora_unet_{FLAT[TO_Q]}", CONV: f"lora_unet_{FLAT[CONV]}", TEXT: f"lora_te_{FLAT[TEXT]}"}
OLD_TO_Q, OLD_TO_OUT = TO_Q.replace(".to_q", ".processor.to_q"), TO_OUT.replace(".to_out.0", ".processor.to_out")
OLD_TEXT = f"text_encoder.{TEXT.replace('q_proj', 'to_q')}"
SCHEMES = {
    "kohya": (PARTS,),
    "kohya, A and B": (PARTS, "peft"),
    "lora_te1_": (PARTS | {TEXT: f"lora_te1_{FLAT[TEXT]}"},),
    "lycoris_": ({TO_Q: f"lycoris_{FLAT[TO_Q]}", TEXT: f"lycoris_{FLAT[TEXT]}"},),
    "kohya, original names": ({TO_Q: f"lora_unet_{FLAT[ORIGINAL_TO_Q]}", CONV: f"lora_unet_{FLAT[ORIGINAL_CONV]}"},),
    "ComfyUI": ({TO_Q: f"diffusion_model.{ORIGINAL_TO_Q}", CONV: f"diffusion_model.{ORIGINAL_CONV}"},),
    "ComfyUI, text": ({TO_Q: f"diffusion_model.{ORIGINAL_TO_Q}", TEXT: f"text_encoders.clip_l.transformer.{TEXT}"},),
    "OMI": ({TO_Q: f"unet.{ORIGINAL_TO_Q}", TEXT: f"clip_l.{TEXT}"},),
    "diffusers": ({TO_Q: f"unet.{TO_Q}", TEXT: f"text_encoder.{TEXT}"}, "peft", ".lora_{}.weight", None),
    "diffusers, alpha": ({TO_Q: f"unet.{TO_Q}"}, "peft"),
    "diffusers, adapter name": ({TO_Q: f"unet.{TO_Q}"}, "peft", ".lora_{}.default.weight", None),
    "diffusers, text_model left out": ({TEXT: f"text_encoder.{TEXT.removeprefix('text_model.')}"}, "peft"),
    "diffusers, old linear layers": ({TEXT: f"text_encoder.{TEXT}"}, "kohya", ".lora_linear_layer.{}.weight", None),
    "diffusers 0.17": ({TO_Q: f"unet.{OLD_TO_Q}", TEXT: OLD_TEXT}, "kohya", "_lora.{}.weight", None),
    "diffusers before 0.17": ({TO_Q: OLD_TO_Q, TO_OUT: OLD_TO_OUT}, "kohya", "_lora.{}.weight", None),
    "bare": ({TO_Q: TO_Q, TEXT: TEXT}, "peft", ".lora_{}.weight", None),
    "peft": ({TO_Q: f"base_model.model.{TO_Q}", CONV: f"base_model.model.{CONV}"}, "peft", ".lora_{}.weight", None),
    "peft, text": ({TEXT: f"base_model.model.{TEXT}"}, "peft", ".lora_{}.weight", None),
}


def check_file(path, changes: dict, atol: float = 1e-5):
    file = read_lora_file(path, TINY)
    assert {name for _, name in file.layers} == set(changes)
    for (part, name), layer in file.layers.items():
        assert part == ("text_encoder" if name == TEXT else "unet")
        torch.testing.assert_close(layer.compute_delta().float(), changes[name], atol=atol, rtol=1e-5)
    return file


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_naming_scheme_is_read(tmp_path, scheme):
    tensors, changes = build_lora(*SCHEMES[scheme])
    save_file(tensors, tmp_path / "x.safetensors")
    check_file(tmp_path / "x.safetensors", changes)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.bfloat16, torch.float64])
def test_alpha_has_any_dtype_and_shape(tmp_path, dtype):
    for shape in ((), (1,)):
        tensors, changes = build_lora(PARTS, alpha=torch.full(shape, 2, dtype=dtype))
        save_file(tensors, tmp_path / "x.safetensors")
        check_file(tmp_path / "x.safetensors", changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_half_precision_files_are_read_as_they_are(tmp_path, dtype):
    tensors, _ = build_lora({TO_Q: PARTS[TO_Q]})
    tensors = {key: tensor.to(dtype) if tensor.ndim else tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    up, down = (tensors[f"{PARTS[TO_Q]}.lora_{side}.weight"].float() for side in ("up", "down"))
    assert check_file(tmp_path / "x.safetensors", {TO_Q: up @ down / 2}).dtype == dtype


@pytest.mark.parametrize("name", ["sd15", "sd21", "tiny-sd"])
def test_no_two_layers_share_a_name_in_any_scheme(name):
    (architecture,) = list_architectures(name)
    layers = [(part, layer) for part, names in architecture.shapes.items() for layer in names]
    named = [key for found in architecture.index.values() for key in found.items()]
    assert set(layers) <= set(named) and all(len(found) == 1 for found in architecture.index.values())
    assert all(architecture.index[layer.replace(".", "_")] == {part: layer} for part, layer in layers)
    if name != "tiny-sd":
        for original, layer in {
            "time_embed_0": "time_embedding.linear_1",
            "input_blocks_0_0": "conv_in",
            "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
            "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
            "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
            "output_blocks_2_1_conv": "up_blocks.0.upsamplers.0.conv",
            "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
            "output_blocks_11_1_transformer_blocks_0_ff_net_2": "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.2",
            "output_blocks_11_0_emb_layers_1": "up_blocks.3.resnets.2.time_emb_proj",
            "out_2": "conv_out",
        }.items():
            assert architecture.index[original] == {"unet": layer}


def test_the_output_of_diffusers_own_kohya_converter_is_read(tiny, tmp_path):
    from diffusers.utils import convert_state_dict_to_kohya

    model, method = tiny(), LoRA(rank=4, alpha=4)
    method.prepare(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    method.save(model, tmp_path, "x")
    tensors = convert_state_dict_to_kohya(load_file(tmp_path / "pytorch_lora_weights.safetensors"))
    assert any(tensor.dtype == torch.int64 for tensor in tensors.values())
    save_file(tensors, tmp_path / "kohya.safetensors")
    expected, file = read_lora_file(tmp_path, TINY), read_lora_file(tmp_path / "kohya.safetensors", TINY)
    assert expected.layers.keys() == file.layers.keys()
    for key, layer in expected.layers.items():
        torch.testing.assert_close(file.layers[key].compute_delta(), layer.compute_delta())


def build_peft_configs() -> dict:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    patterns = {"rank_pattern": {"attn2.to_q": 2}, "alpha_pattern": {"attn2.to_q": 7, "conv1": 1}}
    common = {"r": 4, "target_modules": ["to_q", "conv1"], "init_weights": False, **patterns}
    lora = {**common, "init_lora_weights": False, "lora_alpha": 6}
    lora.pop("init_weights")
    return {
        "lora": LoraConfig(**lora),
        "rslora": LoraConfig(**lora, use_rslora=True),
        "loha": LoHaConfig(**common, alpha=6),
        "loha of tucker form": LoHaConfig(**common, alpha=6, use_effective_conv2d=True),
        "lokr": LoKrConfig(**common, alpha=6, use_effective_conv2d=True, decompose_both=True),
        "lokr of full matrices": LoKrConfig(**{**common, "r": 64, "rank_pattern": {}}, alpha=6),
    }


@pytest.mark.parametrize("kind", build_peft_configs())
def test_folders_that_peft_saves_are_read(tiny, tmp_path, kind):
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    torch.manual_seed(0)
    model = get_peft_model(tiny().unet, build_peft_configs()[kind])
    model.save_pretrained(tmp_path)
    layers = {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}
    file = read_lora_file(tmp_path, TINY)
    assert file.file_format == "peft" and len(file.layers) == len(layers) > 10 and not file.notes
    for name, layer in layers.items():
        delta = layer.get_delta_weight("default").detach()
        torch.testing.assert_close(file.layers["unet", name].compute_delta().float(), delta, atol=1e-5, rtol=1e-4)


def test_peft_options_that_change_the_base_are_refused_and_a_missing_config_is_noted(tmp_path, capsys):
    tensors, _ = build_lora({TO_Q: f"base_model.model.{TO_Q}"}, "peft", alpha=None)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert "adapter_config.json" in read_lora_file(tmp_path, TINY).notes[0] and "warning" in capsys.readouterr().err
    for config, message in (
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa"),
        ({"peft_type": "OFT"}, "peft_type OFT"),
        ({"lora_alpha": "many"}, "alpha"),
        ({"rank_pattern": {"(a+)+": 2}}, "rank_pattern"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4} | config))
        with pytest.raises(ValueError, match=f"adapter_model.safetensors: adapter_config.json.*{message}"):
            read_lora_file(tmp_path, TINY)
    (tmp_path / "unet").mkdir()
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "unet" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"peft adapters; give adapters=\[.*unet\]"):
        read_lora_file(tmp_path, TINY)


def build_lycoris_tensors(kind: str) -> tuple[dict, torch.Tensor]:
    """Tensors of the convolution, and its change by LyCORIS' formulas."""
    kernel, r = (3, 3), 2
    if kind == "loha":
        t1, t2 = draw(r, r, *kernel), draw(r, r, *kernel) + 1
        a, b, c, d = draw(r, 48), draw(r, 48) + 1, draw(r, 48) - 1, draw(r, 48) + 2
        left, right = (torch.einsum("ij...,jr,ip->pr...", t, y, x) for t, x, y in ((t1, a, b), (t2, c, d)))
        names = ("hada_t1", "hada_t2", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        return dict(zip(names, (t1, t2, a, b, c, d), strict=True)) | {"alpha": torch.tensor(1.0)}, left * right / 2
    if kind == "lokr":
        w1, t2, a, b = draw(4, 6), draw(r, r, *kernel), draw(r, 12), draw(r, 8)
        w2 = torch.einsum("ij...,ip,jr->pr...", t2, a, b)
        tensors = {"lokr_w1": w1, "lokr_t2": t2, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(1.0)}
        return tensors, torch.kron(w1[..., None, None], w2.contiguous()) / 2
    if kind == "lokr of five factors":
        x, y, t2, a, b = draw(4, r), draw(r, 6), draw(r, r, *kernel), draw(r, 12), draw(r, 8)
        w2 = torch.einsum("ij...,ip,jr->pr...", t2, a, b)
        tensors = {"lokr_w1_a": x, "lokr_w1_b": y, "lokr_t2": t2, "lokr_w2_a": a, "lokr_w2_b": b}
        return tensors, torch.kron((x @ y)[..., None, None], w2.contiguous())
    if kind == "full":  # alpha does not scale it
        return {"diff": draw(48, 48, 3, 3), "alpha": torch.tensor(9.0)}, draw(48, 48, 3, 3)
    down, up = draw(r, 48, 3, 3), draw(48, r, 1, 1)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1), "scalar": torch.tensor(0.5)}
    return tensors, 0.25 * (up.flatten(1) @ down.flatten(1)).reshape(48, 48, 3, 3)


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr of five factors", "full", "lora"])
def test_all_forms_of_lycoris_are_read(tmp_path, kind):
    tensors, expected = build_lycoris_tensors(kind)
    save_file({f"lycoris_{FLAT[CONV]}.{key}": value for key, value in tensors.items()}, tmp_path / "x.safetensors")
    file = check_file(tmp_path / "x.safetensors", {CONV: expected}, atol=1e-4)
    assert file.adapter_types[0] in kind and file.layers["unet", CONV].rank <= 48


def test_small_files_cannot_describe_huge_products():
    none = lambda rank: (None, rank)  # noqa: E731
    lokr = {"lokr_w1": draw(1, 640), "lokr_w2": draw(640, 1)}  # the Kronecker factors would be 640 x 409,600
    loha = {f"hada_w{n}_a": draw(640, 600) for n in (1, 2)} | {f"hada_w{n}_b": draw(600, 640) for n in (1, 2)}
    for group in (lokr, loha):
        assert parse_layer("layer", group, (640, 640), none).rank == 640
    core = {"lora_mid": draw(1, 1, 900, 900)}
    for group, shape in (
        ({"up": draw(8, 1), "down": draw(1, 8), "mid": core["lora_mid"]}, (8, 8, 3, 3)),
        ({"lokr_w1_a": draw(9, 2), "lokr_w1_b": draw(2, 9), "lokr_w2": draw(2, 2)}, (8, 8)),
        ({"lokr_w1": draw(2, 2), "lokr_w2": draw(2, 3)}, (8, 8)),
        (
            {"lokr_w1": draw(2, 2), "lokr_t2": draw(2, 2, 1, 1), "lokr_w2_a": draw(2, 4, 1), "lokr_w2_b": draw(2, 4)},
            (8, 8, 1, 1),
        ),
    ):
        with pytest.raises(ValueError, match="layer: .*match"):
            parse_layer("layer", group, shape, none)


def test_changes_of_norms_and_biases_are_merged_and_refused_elsewhere(tiny, tmp_path):
    tensors, changes = build_lora({TO_Q: PARTS[TO_Q]})
    tensors |= {f"lora_unet_{FLAT[CONV]}.diff": draw(48, 48, 3, 3), f"lora_unet_{FLAT[CONV]}.diff_b": draw(48)}
    norm = "lora_te_text_model_final_layer_norm"
    tensors |= {f"{norm}.w_norm": draw(64), f"{norm}.b_norm": torch.zeros(64)}  # zeros change nothing
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors: changes 2 biases or norms.*merge"):
        read_lora_file(tmp_path / "x.safetensors", TINY)
    file, base, model = read_lora_file(tmp_path / "x.safetensors", TINY, offsets=True), tiny(), tiny()
    assert any("2 biases and norms" in line for line in format_lora_summary(file))
    merge_lora_files(model, [file], [0.5])
    before, after = dict(base.named_parameters()), dict(model.named_parameters())
    changed = {name: after[name] - before[name] for name in before if not torch.equal(before[name], after[name])}
    text_norm = next(name for name in before if name.endswith("final_layer_norm.weight"))
    expected = {
        f"unet.{TO_Q}.weight": changes[TO_Q],
        f"unet.{CONV}.weight": draw(48, 48, 3, 3),
        f"unet.{CONV}.bias": draw(48),
        text_norm: draw(64),
    }
    assert changed.keys() == expected.keys()
    for name, change in expected.items():
        torch.testing.assert_close(changed[name], change / 2, atol=1e-5, rtol=1e-5)


def test_bundled_embeddings_are_named(tiny, tmp_path, capsys):
    tensors, changes = build_lora({TO_Q: PARTS[TO_Q]})
    save_file(tensors | {"bundle_emb.cat\x1b[2J.string_to_param.*": draw(2, 64)}, tmp_path / "x.safetensors")
    check_file(tmp_path / "x.safetensors", changes)
    message = capsys.readouterr().err
    assert r"embeddings of 'cat\x1b[2J' are not loaded" in message and message.strip().isprintable()
    load_lora(tiny(), tmp_path / "x.safetensors")


FLUX, SD3 = "single_transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj"
FOREIGN = {
    f"transformer.{FLUX}.lora_A.weight": "Flux",
    "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": "Flux",
    f"transformer.{SD3}.lora_A.weight": "Stable Diffusion 3",
    "lora_unet_joint_blocks_0_x_block_attn_proj.lora_down.weight": "Stable Diffusion 3",
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": "diffusion transformer",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": "language model",
    "lora_controlnet": "ControlNet",
    "input_hint_block.0.weight": "ControlNet",
    "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": "ControlNet",
    "ip_adapter.1.to_k_ip.weight": "IP-Adapter",
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": "AnimateDiff",
    "emb_params": "textual inversion",
    "<cat>": "textual inversion",
    "model.diffusion_model.input_blocks.0.0.weight": "full checkpoint",
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": "full checkpoint",
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": "full checkpoint",
    "decoder.mid.attn_1.k.weight": "VAE",
    "down_blocks.0.resnets.0.conv1.weight": "weights of a UNet",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_other_files_are_called_what_they_are(tmp_path, key):
    save_file({key: draw(4, 2048)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=f"x.safetensors: is .*{FOREIGN[key]}.*Stable Diffusion 1, 2 and XL") as error:
        read_lora_file(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)


def test_a_file_is_never_read_in_part(tmp_path):
    tensors, _ = build_lora(PARTS)
    for key, message in (
        (f"{PARTS[TO_Q]}.lora_sideways", "lora_sideways"),
        ("lora_unet_down_blocks_9_attn.lora_up.weight", "lora_unet_down_blocks_9_attn: fits no layer of tiny-sd"),
        ("lora_te_text_model_final_layer_norm.on_input", "IA3"),
        (f"{PARTS[TO_Q]}.a1.weight", "GLoRA"),
        (f"{PARTS[TO_Q]}.oft_diag", "OFT"),
        (f"{PARTS[TO_Q]}.lora_up.bias", "biases of LoRA factors"),
        (f"{PARTS[TO_Q]}.diff", "down, up beside"),
    ):
        save_file(tensors | {key: draw(48, 48)}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=f"x.safetensors: .*{message}"):
            read_lora_file(tmp_path / "x.safetensors", TINY)


def test_another_architecture_is_advised_only_for_files_of_one(tmp_path):
    """Also in a folder whose name says that it fits."""
    folder = tmp_path / "outfits that fit"
    folder.mkdir()
    save_file({"lora_unet_nothing.lora_up.weight": torch.zeros(4, 4)}, folder / "one.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="architecture=FOLDER"):
        read_lora_files([folder / "one.safetensors"], None)
    for file, architecture in (("broken", None), ("one", "tiny-sd")):
        with pytest.raises(ValueError, match="adapter=") as error:
            read_lora_files([folder / f"{file}.safetensors"], architecture)
        assert "architecture=FOLDER" not in str(error.value)

"""A checkpoint in one file opens as the base with equal bits, or is called what it is in one line."""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import safetensors
import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import write_narrow_model

from sdft.lora.merging import load_model_or_run
from sdft.models.checkpoint_file import CheckpointFile, read_checkpoint_header
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.family import SUPPORTED
from sdft.models.loading import build_untrained, check_local_model, load_pretrained, load_stable_diffusion
from sdft.models.original_layout import choose_layout, map_networks
from sdft.models.saving import save_pipeline
from sdft.models.single_file import check_weights, list_unread_tensors, save_single_file, to_original_layout
from sdft.runs.hashing import hash_weights

UNET, VAE, CLIP, OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.model.",
)
LAST_LAYER = f"{OPEN_CLIP}transformer.resblocks.23.ln_1.weight"


def get_error(load) -> str:
    with pytest.raises(ValueError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_equal_weights(model, other) -> None:
    for part in ("vae", *model.parts):
        expected, weights = (m.get_submodule(part).state_dict() for m in (model, other))
        assert expected.keys() == weights.keys()
        assert all(torch.equal(expected[key], weights[key]) for key in expected)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> Path:
    """The embedded model in one file."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_single_file(load_stable_diffusion("tiny-sd"), path, torch.float32, {})
    return path


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, Path]:
    """Folders with narrow, short configurations of both families."""
    widths = {"block_out_channels": [32] * 4, "layers_per_block": 1}
    text = {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50}
    home = tmp_path_factory.mktemp("narrow")
    return {name: write_narrow_model(name, home / name, widths, text) for name in ("sd15", "sd21")}


def modify(source: Path, target: Path, changes: dict, drop: str | None = None, metadata: dict | None = None) -> str:
    """Save `source` with other tensors, without those that match `drop`; returns the path as `model.name`."""
    tensors = {key: value for key, value in load_file(source).items() if not (drop and re.search(drop, key))}
    save_file(tensors | changes, target, metadata)
    return str(target)


@torch.no_grad()
def predict(model) -> torch.Tensor:
    torch.manual_seed(1)
    latents = torch.randn(1, 4, 16, 16)
    return model.predict(latents, torch.tensor([400]), model.condition({"ids": torch.arange(77)[None] % 50}))


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_a_written_file_reads_back_with_equal_bits_and_predictions(configs, tmp_path, name):
    torch.manual_seed(0)
    model = load_stable_diffusion(str(configs[name]), weights="random")
    save_single_file(model, tmp_path / "x.safetensors", torch.float32, {})
    loaded = load_stable_diffusion(str(tmp_path / "x.safetensors"), architecture=str(configs[name]))
    assert_equal_weights(model, loaded)
    assert torch.equal(predict(model), predict(loaded))
    assert hash_weights(model) == hash_weights(loaded)
    assert loaded.prediction_type == model.prediction_type == ("v_prediction" if name == "sd21" else "epsilon")
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_embedded_model_in_one_file_is_recognised_and_equal_and_draws_no_random_number(tiny_file, tmp_path):
    expected, state = load_stable_diffusion("tiny-sd"), torch.get_rng_state()
    for name in ("sd15", None):  # the family comes from the file
        loaded = load_stable_diffusion(str(tiny_file), architecture=name)
        assert_equal_weights(expected, loaded)
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(loaded.scheduler.config) == dict(expected.scheduler.config)
    save_pipeline(loaded, tmp_path / "folder")
    for file in (tmp_path / "folder").rglob("*.json"):
        assert str(ASSETS_FOLDER) not in (text := file.read_text(encoding="utf-8")) and str(tmp_path) not in text
    assert_equal_weights(load_pretrained(str(tmp_path / "folder")), expected)


def test_a_loaded_model_is_a_copy_in_fp32_that_does_not_depend_on_the_file(tiny_file, tmp_path):
    file = tmp_path / "half.safetensors"
    save_single_file(load_stable_diffusion("tiny-sd"), file, torch.float16, {})
    loaded = load_stable_diffusion(str(file))
    before = hash_weights(loaded)
    with open(file, "r+b") as stream:
        stream.truncate(1000)
    assert hash_weights(loaded) == before
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    plain = load_stable_diffusion(str(tiny_file))
    assert torch.equal(loaded.unet.conv_in.weight, plain.unet.conv_in.weight.half().float())


PUBLISHED_SHAPES = {  # a few of the published files
    "sd15": {
        f"{UNET}input_blocks.3.0.op.weight": (320, 320, 3, 3),
        f"{UNET}input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        f"{UNET}output_blocks.5.2.conv.bias": (1280,),
        f"{UNET}output_blocks.11.1.transformer_blocks.0.attn2.to_v.weight": (320, 768),
        f"{UNET}middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        f"{VAE}decoder.up.3.block.0.conv1.weight": (512, 512, 3, 3),
        f"{VAE}encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        f"{VAE}encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        f"{CLIP}encoder.layers.11.mlp.fc1.weight": (3072, 768),
        f"{CLIP}embeddings.position_embedding.weight": (77, 768),
    },
    "sd21": {
        f"{UNET}middle_block.1.proj_in.weight": (1280, 1280),
        f"{UNET}output_blocks.11.1.transformer_blocks.0.attn2.to_v.weight": (320, 1024),
        f"{OPEN_CLIP}transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        f"{OPEN_CLIP}transformer.resblocks.0.attn.in_proj_bias": (3072,),
        f"{OPEN_CLIP}positional_embedding": (77, 1024),
        f"{OPEN_CLIP}ln_final.weight": (1024,),
    },
    "sdxl": {
        f"{UNET}label_emb.0.0.weight": (1280, 2816),
        f"{UNET}input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        f"{UNET}middle_block.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        f"{UNET}output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.positional_embedding": (77, 1280),
    },
}


UNREAD_SHAPES = {
    "sd15": {"betas": (1000,), f"{CLIP}embeddings.position_ids": (1, 77)},
    "sd21": {"betas": (1000,), LAST_LAYER: (1024,), f"{OPEN_CLIP}logit_scale": ()},
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.logit_scale": (),
    },
}


@cache
def build_networks(name: str):
    """The layout and the mapped networks of the published structure: (name, shapes of the weights, their places)."""
    with init_empty_weights():
        model = build_untrained(ASSETS_FOLDER / name)
    networks = map_networks(model, layout := choose_layout(model))
    return layout, [
        (part, {k: weight.shape for k, weight in network.state_dict().items()}, places)
        for part, network, places in networks
    ]


def build_header(name: str, **metadata: str) -> CheckpointFile:
    """The header of a file with the published structure."""
    _, networks = build_networks(name)
    shapes = {
        place.key: place.get_shape(weights[key]) for _, weights, places in networks for key, place in places.items()
    }
    shapes |= UNREAD_SHAPES[name]
    return CheckpointFile(Path("x.safetensors"), shapes, dict.fromkeys(shapes, "F16"), metadata)


TENSORS = {  # of the published files by network, without position ids, logit scale and the layer that SD 2 does not use
    "sd15": [686, 248, 196],
    "sd21": [686, 248, 280],
    "sdxl": [1680, 248, 196, 389],
}


@pytest.mark.parametrize("name", TENSORS)
def test_files_with_the_published_structure_are_read_completely(name, capsys):
    file, (layout, networks) = build_header(name), build_networks(name)
    assert [len({place.key for place in places.values()}) for *_, places in networks] == TENSORS[name]
    assert name != "sdxl" or len(file.shapes) == 2515
    assert {key: file.shapes[key] for key in PUBLISHED_SHAPES[name]} == PUBLISHED_SHAPES[name]
    assert file.layout[0] is layout and file.find_configs() == ASSETS_FOLDER / name
    for part, weights, places in networks:
        check_weights(file, part, weights, places)
        assert weights.keys() == places.keys()
    list_unread_tensors(file, {place.key for *_, places in networks for place in places.values()}, ())
    assert not capsys.readouterr().err


PREDICTION_TYPES = {  # of SD 2: metadata, names of marker tensors, the expected type
    "open": ({}, [], None),
    "spec v": ({"modelspec.prediction_type": "v"}, [], "v_prediction"),
    "spec epsilon": ({"modelspec.prediction_type": "epsilon"}, [], "epsilon"),
    "architecture": ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, [], "v_prediction"),
    "architecture 512": ({"modelspec.architecture": "stable-diffusion-v2-512"}, [], "epsilon"),
    "marker": ({}, ["v_pred", "ztsnr"], "v_prediction"),
}


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_prediction_type_is_read_from_the_file_or_required(kind):
    metadata, markers, expected = PREDICTION_TYPES[kind]
    file = build_header("sd21", **metadata)
    file.shapes.update(dict.fromkeys(markers, (0,)))
    assert file.has_zero_terminal_snr == bool(markers)
    if expected:
        assert file.choose_prediction_type(None) == expected
    else:
        error = get_error(lambda: file.choose_prediction_type(None))
        assert error.startswith("model.prediction_type=null: x.safetensors is Stable Diffusion 2 and does not say")
    assert file.choose_prediction_type("epsilon") == "epsilon"
    assert build_header("sd15").choose_prediction_type(None) == "epsilon"
    with pytest.raises(ValueError, match=r"modelspec.prediction_type is flow"):
        build_header("sd15", **{"modelspec.prediction_type": "flow"}).choose_prediction_type(None)


def test_models_that_only_give_weights_need_no_prediction_type(tiny_file, monkeypatch):
    monkeypatch.setattr(CheckpointFile, "detect_prediction_type", lambda *_: None)  # as in files of SD 2
    with pytest.raises(ValueError, match="model.prediction_type=null"):
        check_local_model(str(tiny_file))
    assert_equal_weights(load_model_or_run(str(tiny_file), "base"), load_stable_diffusion("tiny-sd"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_weights_of_any_float_type_become_fp32(tiny_file, tmp_path, dtype):
    tensors = {key: weight.to(dtype) for key, weight in load_file(tiny_file).items()}
    save_file(tensors, tmp_path / "x.safetensors")
    loaded = load_stable_diffusion(str(tmp_path / "x.safetensors"))
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.unet.conv_in.weight, tensors[f"{UNET}input_blocks.0.0.weight"].float())


def test_markers_of_derivatives_choose_velocity_and_zero_terminal_snr(tiny_file, tmp_path):
    markers = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    name = modify(tiny_file, tmp_path / "v.safetensors", markers)
    loaded = load_stable_diffusion(name)
    assert loaded.prediction_type == "v_prediction" and loaded.noise_process.alphas_cumprod[-1] < 1e-6
    assert load_stable_diffusion(name, prediction_type="epsilon").prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("trained_for", "size", "architecture"),
    [("epsilon", 64, "stable-diffusion-v2-512"), ("v_prediction", 96, "stable-diffusion-v2-768-v")],
)
def test_files_of_stable_diffusion_2_have_the_size_of_their_prediction_type(
    configs, tmp_path, monkeypatch, trained_for, size, architecture
):
    monkeypatch.setattr(CheckpointFile, "find_configs", lambda _: configs["sd21"])
    model = load_stable_diffusion(str(configs["sd21"]), weights="random", prediction_type=trained_for)
    save_single_file(model, tmp_path / "x.safetensors", torch.float16, {})
    assert read_checkpoint_header(tmp_path / "x.safetensors").metadata["modelspec.architecture"] == architecture
    loaded = load_stable_diffusion(str(tmp_path / "x.safetensors"), prediction_type="epsilon")
    assert (loaded.prediction_type, loaded.checkpoint_prediction_type) == ("epsilon", trained_for)
    assert loaded.unet.config.sample_size == size and loaded.checkpoint_resolution == 8 * size


OTHER_FILES = {  # names and shapes of tensors, and the description
    "refiner": ({"conditioner.embedders.0.model.ln_final.bias": (1280,)}, "the refiner of Stable Diffusion XL"),
    "cosxl": ({"edm_vpred.sigma_max": ()}, "a model with another noise process"),
    "inpainting": ({f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}, "an inpainting model"),
    "instruct-pix2pix": ({f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)}, "InstructPix2Pix"),
    "depth": ({f"{UNET}input_blocks.0.0.weight": (320, 5, 3, 3)}, "a depth-to-image model"),
    "upscaler": ({f"{UNET}input_blocks.0.0.weight": (320, 7, 3, 3)}, "an upscaler"),
    "sd3": ({f"{UNET}joint_blocks.0.context_block.attn.qkv.weight": (1, 1)}, "Stable Diffusion 3"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux"),
    "flux in comfy": ({f"{UNET}double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux"),
    "pixart": ({"blocks.0.scale_shift_table": (6, 1152)}, "a transformer of another family"),
    "wan": ({f"{UNET}blocks.0.self_attn.q.weight": (1, 1)}, "a transformer of another family"),
    "language model": ({"model.layers.0.self_attn.q_proj.weight": (1, 1)}, "a transformer of another family"),
    "cascade": ({"down_blocks.0.1.channelwise.0.weight": (1, 1)}, "Stable Cascade"),
    "video": ({f"{UNET}input_blocks.1.0.time_stack.in_layers.0.weight": (320,)}, "Stable Video Diffusion"),
    "kohya lora": ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 320)}, "a LoRA file"),
    "peft lora": ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 320)}, "a LoRA file"),
    "lycoris": ({"lycoris_mid_block_attentions_0_proj_in.lokr_w1": (4, 4)}, "a LoRA file"),
    "vae": ({"decoder.up.0.block.0.conv1.weight": (128, 128, 3, 3)}, "an autoencoder; give model.vae=FILE"),
    "vae with prefix": ({f"{VAE}quant_conv.weight": (8, 8, 1, 1)}, "an autoencoder; give model.vae=FILE"),
    "diffusers' unet": ({"down_blocks.0.resnets.0.conv1.weight": (1, 1)}, "a network with diffusers' names"),
    "diffusers' vae": ({"encoder.down_blocks.0.resnets.0.conv1.weight": (1, 1)}, "a network with diffusers' names"),
    "unet": ({"input_blocks.0.0.weight": (320, 4, 3, 3)}, "a UNet without autoencoder"),
    "text encoder": ({"text_model.final_layer_norm.bias": (768,)}, "a text encoder"),
    "clip": ({f"{CLIP}final_layer_norm.bias": (768,)}, "a text encoder"),
    "embedding": ({"emb_params": (2, 768)}, "a textual inversion embedding"),
    "sdxl embedding": ({"clip_g": (2, 1280), "clip_l": (2, 768)}, "a textual inversion embedding"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "a ControlNet"),
    "ip-adapter": ({"image_proj.proj.weight": (1, 1)}, "an IP-Adapter"),
    "animatediff": ({"down_blocks.0.motion_modules.0.temporal_transformer.norm.bias": (1,)}, "an AnimateDiff"),
    "quantized": ({"scaled_fp8": (0,)}, "quantized"),
    "ema": ({"model_ema.diffusion_modelinput_blocks00weight": (320, 4, 3, 3)}, "the EMA weights"),
    "another": ({"something": (1,)}, "holds no model that is known"),
    "nothing": ({}, "holds no model that is known"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_named_from_their_header(kind):
    shapes, description = OTHER_FILES[kind]
    if shapes and next(iter(shapes)).startswith((f"{UNET}input", "edm", "control_model", "conditioner", "scaled")):
        shapes = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)} | shapes  # a file with a UNet, too
    file = CheckpointFile(Path("x.safetensors"), shapes, {}, {})
    error = get_error(lambda: file.layout)
    assert error.startswith("model.name=x.safetensors: ") and description in error
    assert SUPPORTED in error


def test_files_that_resemble_a_supported_model_are_named(tiny_file, tmp_path):
    zeros, target = torch.zeros, tmp_path / "x.safetensors"
    cases = [
        ({f"{UNET}extra.weight": zeros(2)}, None, f"has the layer {UNET}extra.weight, which"),
        ({f"{VAE}encoder.extra.weight": zeros(2)}, None, f"has the layer {VAE}encoder.extra.weight, which"),
        ({f"{UNET}out.2.bias": zeros(8)}, None, f"{UNET}out.2.bias has the shape [8] instead of [4]"),
        ({f"{UNET}out.2.bias": zeros(4, dtype=torch.int8)}, None, "is I8; quantized weights"),
        ({}, r"out\.2\.bias$", f"lacks {UNET}out.2.bias; the file is incomplete"),
        ({}, r"out\.2\.", f"lacks {UNET}out.2.weight and 1 more; the file is incomplete"),
        ({}, "^cond_stage_model", "has no text encoder that is known (cond_stage_model. or conditioner.)"),
        ({}, "^first_stage_model", "has no autoencoder; give model.vae=FOLDER or FILE"),
        ({f"{UNET}input_blocks.0.0.weight": zeros(40, 4, 3, 3)}, None, "begins with 40 channels"),
        ({"x" * 5000: zeros(1), f"{UNET}{'y' * 5000}": zeros(1)}, None, "…"),
    ]
    for changes, drop, message in cases:
        name = modify(tiny_file, target, changes, drop)
        error = get_error(lambda name=name: load_stable_diffusion(name))
        assert error.startswith(f"model.name={target}: ") and message in error and len(error) < 1000


def test_variants_that_are_met_in_the_wild_load_with_equal_bits(tiny_file, tmp_path, capsys):
    tensors = load_file(tiny_file)
    changes, prefix = {"v": torch.zeros(2), "model_ema.decay": torch.zeros(())}, "cond_stage_model.transformer."
    changes |= {"model_ema.diffusion_modelout2bias": torch.zeros(4), "betas": torch.zeros(1000)}
    changes |= {f"{prefix}embeddings.position_ids": torch.arange(77)[None], f"{VAE}loss.logvar": torch.zeros(())}
    changes |= {prefix + key.removeprefix(CLIP): weight for key, weight in tensors.items() if key.startswith(CLIP)}
    changes |= {
        key: weight[:, :, 0, 0]
        for key, weight in tensors.items()
        if re.search(r"attn_1\.\w+\.weight", key) and weight.ndim == 4
    }
    name = modify(tiny_file, tmp_path / "wild.safetensors", changes, drop=CLIP)
    assert_equal_weights(load_stable_diffusion(name), load_stable_diffusion("tiny-sd"))
    lines = capsys.readouterr().err.splitlines()
    assert f"warning    model.name={name}: 2 EMA weights are not read, such as model_ema.decay" in lines
    assert f"warning    model.name={name}: 1 unknown tensors are not read, such as v" in lines


@pytest.mark.parametrize("content", [b"", b"\0" * 16, b"\xff" * 64, None])
def test_damaged_files_are_named(tiny_file, tmp_path, content):
    file = tmp_path / "x.safetensors"
    file.write_bytes(tiny_file.read_bytes()[:-1] if content is None else content)
    assert get_error(lambda: check_local_model(str(file))).startswith(f"model.name={file}: not a safetensors file")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_pickles_are_refused_with_a_command_that_converts_them(tiny_file, tmp_path, suffix):
    file = tmp_path / f"my model{suffix}"
    weights = load_file(tiny_file)
    torch.save({"state_dict": weights | {"step": 3}, "epoch": 1} if suffix == ".ckpt" else weights, file)
    error = get_error(lambda: load_stable_diffusion(str(file)))
    assert error.startswith(f"model.name={file}: pickles can hold code; convert it: ")
    program, flag, code = shlex.split(error.partition("convert it: ")[2])
    assert (program, flag) == ("python", "-c")
    exec(code, {})
    assert_equal_weights(load_stable_diffusion(str(file.with_suffix(".safetensors"))), load_stable_diffusion("tiny-sd"))


def test_other_suffixes_are_refused(tmp_path):
    (tmp_path / "model.txt").write_text("")
    assert "a file; give a .safetensors file or a folder" in get_error(
        lambda: check_local_model(str(tmp_path / "model.txt"))
    )


def test_a_written_file_says_what_its_model_is(tiny_file):
    with safe_open(tiny_file, "pt") as reader:
        assert reader.metadata()["modelspec.prediction_type"] == "epsilon"
    header = read_checkpoint_header(tiny_file)
    assert header.shapes.keys() == to_original_layout(load_stable_diffusion("tiny-sd")).keys()


@pytest.mark.slow
def test_training_from_a_file_equals_training_from_the_folder(tiny_file, run):
    options = ("model.weights=pretrained", "steps=1", "cache=ram")
    module, folder = run("model=tiny", *options)
    expected = {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad}
    module, folder = run("model=tiny", *options, f"model.name={tiny_file}", name="file")
    record = json.loads((folder / "run.json").read_text())
    assert record["base"] == str(tiny_file) and record["digests"]["model"] == hash_weights(
        load_stable_diffusion("tiny-sd")
    )
    actual = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    assert expected.keys() == actual.keys() and all(torch.equal(expected[key], actual[key]) for key in expected)
    card = (folder / "adapter" / "README.md").read_text()
    assert "from_single_file(base)" in card and str(tiny_file.parent) not in card.partition("## Training command")[0]


def test_a_header_is_read_and_its_layout_searched_once(tiny_file, monkeypatch):
    path, opened, searched = tiny_file.with_name("copy.safetensors"), [], []
    path.write_bytes(tiny_file.read_bytes())
    open_file, find_first = safetensors.safe_open, CheckpointFile.find_first
    monkeypatch.setattr(CheckpointFile, "find_first", lambda *args: searched.append(args) or find_first(*args))
    check_local_model(str(path))
    monkeypatch.setattr(safetensors, "safe_open", lambda *args: opened.append(args) or open_file(*args))
    header = read_checkpoint_header(path)
    load_stable_diffusion(str(path))
    assert read_checkpoint_header(path) is header and len(searched) == 1
    path.write_bytes(tiny_file.read_bytes())
    assert read_checkpoint_header(path) is not header

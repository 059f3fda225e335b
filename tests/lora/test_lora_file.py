"""LoRA files of every format and adapter type are read as the weight change that they define."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdft.lora.architecture import list_architectures
from sdft.lora.file import read_lora_file
from sdft.lora.formats import load_lora, to_diffusers_format, to_kohya_format, write_safetensors
from sdft.lora.low_rank import approximate_low_rank, build_low_rank_layer, compute_energy, reduce_rank
from sdft.lora.state_dict import build_adapter_state
from sdft.methods.lora import LoRA

TINY = list_architectures("tiny-sd")
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # 48 x 48
CONV = "down_blocks.0.resnets.0.conv1"  # 48 x 48 x 3 x 3
FLAT = {name: f"lora_unet_{name.replace('.', '_')}" for name in (TO_Q, CONV)}


@pytest.fixture(scope="module")
def save_random_lora(tiny, tmp_path_factory):
    """A function that saves a LoRA with random weights and returns the folder."""

    def save(seed: int = 0, size: float = 0.1, **options):
        folder, model = tmp_path_factory.mktemp("adapter"), tiny()
        method = LoRA(**{"rank": 4, "alpha": 6.0} | options)
        method.prepare(model)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += size * torch.randn_like(parameter)
        method.save(model, folder, "mine")
        return folder

    return save


def compute_changes(file) -> dict[tuple[str, str], torch.Tensor]:
    return {key: layer.compute_delta() for key, layer in file.layers.items()}


def are_close(x: dict, y: dict, atol: float = 0.0) -> bool:
    return x.keys() == y.keys() and all(torch.allclose(x[k], y[k], atol=atol, rtol=0) for k in x)


KINDS = {
    "attention": {},
    "convolutions": {"unet_targets": ["to_q", "conv1", "proj_in"], "text_encoder": False},
    "rank-stabilised": {"use_rslora": True},
    "use_dora": {"use_dora": True, "unet_targets": ["to_q", "conv1"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_formats_give_the_same_change(save_random_lora, kind):
    folder = save_random_lora(**KINDS[kind])
    diffusers, kohya = read_lora_file(folder, TINY), read_lora_file(folder / "mine-kohya.safetensors", TINY)
    assert (diffusers.file_format, kohya.file_format) == ("diffusers", "kohya")
    assert are_close(compute_changes(diffusers), compute_changes(kohya), 1e-6)
    assert diffusers.has_dora == kohya.has_dora == (kind == "use_dora")
    for key, layer in diffusers.layers.items():
        assert layer.magnitude is None or torch.equal(layer.magnitude, kohya.layers[key].magnitude)


def test_the_architecture_is_detected_by_names_and_shapes(save_random_lora, tmp_path):
    assert read_lora_file(save_random_lora()).architecture.name == "tiny-sd"
    for name, width in (("sd15", 768), ("sd21", 1024)):
        tensors = {f"{FLAT[TO_Q].replace('attn1', 'attn2')[:-4]}to_k.lora_down.weight": torch.randn(2, width)}
        tensors |= {key.replace("down.w", "up.w"): torch.randn(320, 2) for key in tensors}
        save_file(tensors, tmp_path / "real.safetensors")
        assert read_lora_file(tmp_path / "real.safetensors").architecture.name == name


def test_different_alphas_and_ranks_survive_both_formats_in_plain_diffusers(tiny, tmp_path):
    """diffusers applies one alpha to all layers of a kohya file, and none of a diffusers file, whose layers share one rank."""
    torch.manual_seed(0)
    te = "text_model.encoder.layers.0.self_attn.out_proj"  # diffusers requires it in a kohya file
    parts = {
        "unet": {TO_Q: build_random_layer((48, 48), 4, 2.0), TO_Q[:-1] + "k": build_random_layer((48, 48), 2, 7.0)},
        "text_encoder": {
            te: build_random_layer((64, 64), 3, 3.0),
            te.replace("0", "1"): build_random_layer((64, 64), 5, 1.0),
        },
    }
    adapters = {part: build_adapter_state(part, layers) for part, layers in parts.items()}
    for name, written in {
        "d": (to_diffusers_format(adapters), {}),
        "k": to_kohya_format(adapters, "k", TINY[0]),
    }.items():
        write_safetensors(tmp_path / f"{name}.safetensors", *written)
        back = read_lora_file(tmp_path / f"{name}.safetensors", TINY)
        assert {key: layer.rank for key, layer in back.layers.items()} == {
            (part, key): max(other.rank for other in layers.values()) if name == "d" else layer.rank
            for part, layers in parts.items()
            for key, layer in layers.items()
        }
        pipeline = tiny().build_pipeline()
        pipeline.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name="one")
        for part, layers in parts.items():
            for layer_name, layer in layers.items():
                module = getattr(pipeline, part).get_submodule(layer_name.removeprefix("text_model."))
                delta = module.get_delta_weight("one").double()
                torch.testing.assert_close(delta, layer.compute_delta(), atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(
                    back.parts[part][layer_name].compute_delta(), layer.compute_delta(), atol=1e-5, rtol=1e-5
                )


def build_random_layer(shape, rank: int, alpha: float):
    layer = build_low_rank_layer((torch.randn(shape[0], rank), torch.randn(rank, shape[1])), shape)
    layer.alpha = alpha
    return layer


def test_a_kohya_file_with_one_alpha_per_layer_keeps_them(tiny, tmp_path):
    tensors = {f"{FLAT[TO_Q]}.alpha": torch.tensor(8.0), f"{FLAT[TO_Q][:-1]}k.alpha": torch.tensor(1.0)}
    for name in (FLAT[TO_Q], FLAT[TO_Q][:-1] + "k"):
        tensors |= {f"{name}.lora_down.weight": torch.randn(2, 48), f"{name}.lora_up.weight": torch.randn(48, 2)}
    save_file(tensors, tmp_path / "odd.safetensors")
    model = tiny()
    load_lora(model, tmp_path / "odd.safetensors")
    assert model.unet.get_submodule(TO_Q).scaling == {"default": 4.0}
    assert model.unet.get_submodule(TO_Q[:-1] + "k").scaling == {"default": 0.5}


def test_diffusers_names_from_before_peft_are_read(tmp_path):
    tensors = {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": torch.randn(
            2, 48
        ),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": torch.randn(48, 2),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight": torch.randn(2, 64),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight": torch.randn(64, 2),
    }
    save_file(tensors, tmp_path / "before.safetensors")
    assert set(read_lora_file(tmp_path / "before.safetensors", TINY).layers) == {
        ("unet", TO_Q),
        ("text_encoder", "text_model.encoder.layers.0.self_attn.out_proj"),
    }


def build_lycoris_tensors(kind: str) -> tuple[dict, torch.Tensor]:
    """Tensors in the LyCORIS format, and the weight change by its formulas."""
    torch.manual_seed(1)
    draw = lambda *size: torch.randn(*size, dtype=torch.float64).float()  # noqa: E731
    if kind == "loha of a convolution":
        a, b, c, d = draw(48, 2), draw(2, 48 * 9), draw(48, 2), draw(2, 48 * 9)
        tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)}
        return tensors, ((a @ b) * (c @ d)).reshape(48, 48, 3, 3) / 2
    if kind == "lokr":
        w, a, b = draw(4, 6), draw(12, 3), draw(3, 8)
        return {"lokr_w1": w, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(2.0)}, torch.kron(w, a @ b) * 2 / 3
    if kind == "full lokr of a convolution":  # not scaled by alpha
        w, v = draw(4, 6), draw(12, 8, 3, 3)
        tensors = {"lokr_w1": w, "lokr_w2": v, "alpha": torch.tensor(1e10)}
        return tensors, torch.kron(w[:, :, None, None].contiguous(), v)
    if kind == "lokr of four factors":
        a, b, c, d = draw(4, 2), draw(2, 6), draw(12, 2), draw(2, 8)
        tensors = {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2_a": c, "lokr_w2_b": d, "alpha": torch.tensor(2.0)}
        return tensors, torch.kron(a @ b, c @ d)
    down, mid, up = draw(2, 48, 1, 1), draw(2, 2, 3, 3), draw(48, 2, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    return tensors, torch.einsum("or,rshw,si->oihw", up[..., 0, 0], mid, down[..., 0, 0]) / 2


@pytest.mark.parametrize(
    "kind", ["loha of a convolution", "lokr", "full lokr of a convolution", "lokr of four factors", "locon"]
)
def test_other_types_are_read_as_the_equivalent_lora(tmp_path, kind):
    tensors, expected = build_lycoris_tensors(kind)
    name = FLAT[CONV] if expected.ndim == 4 else FLAT[TO_Q]
    tensors = {f"{name}.{key}": value for key, value in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora_file(tmp_path / "x.safetensors", TINY)
    (layer,) = file.layers.values()
    assert tuple(expected.shape) == layer.shape and file.adapter_types[0] in kind
    torch.testing.assert_close(layer.compute_delta().float(), expected, atol=1e-4, rtol=1e-5)


HEADER = json.dumps({"unet.r": 2, "unet.lora_alpha": "much"})
BAD = {
    "a factor without its partner": ({f"{FLAT[TO_Q]}.lora_down.weight": (2, 48)}, "without up"),
    "an unknown tensor": ({f"{FLAT[TO_Q]}.lora_sideways": (2, 48)}, "lora_sideways"),
    "an unknown layer": ({"lora_unet_nowhere.lora_up.weight": (48, 2)}, "lora_unet_nowhere.*tiny-sd"),
    "another shape": ({f"{FLAT[TO_Q]}.lora_up.weight": (49, 2)}, "does not fit tiny-sd.*shape"),
    "ranks that differ": (
        {f"{FLAT[TO_Q]}.lora_up.weight": (48, 2), f"{FLAT[TO_Q]}.lora_down.weight": (3, 48)},
        r"\[48, 2\].*\[3, 48\]",
    ),
    "of SDXL": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (64, 2)}, "Stable Diffusion XL"),
    "two formats": (
        {f"unet.{TO_Q}.lora_A.weight": (2, 48), f"{FLAT[TO_Q]}.lora_up.weight": (48, 2)},
        "kohya.*diffusers",
    ),
    "a core alone": ({f"{FLAT[CONV]}.hada_t1": (2, 2, 3, 3)}, "hada_t1 without hada_w1_a"),
    "an OFT": ({f"{FLAT[TO_Q]}.oft_blocks": (4, 12, 12)}, "OFT"),
    "two adapters of one layer": (
        {f"{FLAT[TO_Q]}.diff": (48, 48), f"{FLAT[TO_Q]}.lora_up.weight": (48, 2)},
        "up beside",
    ),
    "nothing": ({}, "contains no tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_files_raise_a_one_line_error(tmp_path, case):
    shapes, message = BAD[case]
    save_file({key: torch.randn(shape) for key, shape in shapes.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        read_lora_file(tmp_path / "bad.safetensors", TINY)
    assert "bad.safetensors: " in str(error.value) and "\n" not in str(error.value)


def test_nan_weights_and_broken_headers_raise(save_random_lora, tmp_path):
    tensors = load_file(save_random_lora() / "pytorch_lora_weights.safetensors")
    key = sorted(tensors)[0]
    save_file(tensors | {key: tensors[key] * float("nan")}, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="nan.safetensors: .*NaN"):
        read_lora_file(tmp_path / "nan.safetensors", TINY)
    for header in ("{", "[1]", HEADER, json.dumps({"unet.alpha_pattern": {"(a+)+": 1.0}})):
        save_file(tensors, tmp_path / "head.safetensors", metadata={"lora_adapter_metadata": header})
        with pytest.raises(ValueError, match="head.safetensors: .*lora_adapter_metadata"):
            read_lora_file(tmp_path / "head.safetensors", TINY)
    (tmp_path / "pickle.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"pickle\.ckpt: "):
        read_lora_file(tmp_path / "pickle.ckpt", TINY)


def test_lowest_rank_and_best_approximation_match_the_svd():
    torch.manual_seed(2)
    matrix = torch.randn(20, 30, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    nearest = u[:, :5] * s[:5] @ v[:5]
    for up, down in (approximate_low_rank(matrix, 5), reduce_rank((matrix, torch.eye(30, dtype=torch.float64)), 5)):
        torch.testing.assert_close(up @ down, nearest)
        assert compute_energy((up, down)) == pytest.approx(float(s[:5].square().sum()))
    up, down = approximate_low_rank(matrix.T, 5)
    torch.testing.assert_close(up @ down, nearest.T)
    wanted = int((s.square().cumsum(0) / s.square().sum() < 0.8).sum()) + 1
    assert (
        len(approximate_low_rank(matrix, 20, 0.8)[1])
        == len(reduce_rank((matrix, torch.eye(30).double()), energy=0.8)[1])
        == wanted
    )


def test_the_diffusers_file_has_alpha_equal_to_the_rank_and_the_kohya_file_the_own_alpha(save_random_lora):
    folder = save_random_lora()
    assert read_lora_file(folder).layers["unet", TO_Q].alpha == 4.0
    assert read_lora_file(folder / "mine-kohya.safetensors").layers["unet", TO_Q].alpha == 6.0

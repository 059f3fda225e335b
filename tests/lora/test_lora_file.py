"""Whatever the format and the kind: what is read is the change of the weights that the file means."""

import json

import pytest
import torch
from safetensors import safe_open
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
def made(tiny, tmp_path_factory):
    """A function that writes the files of a LoRA with something in it."""

    def make(seed: int = 0, size: float = 0.1, **words):
        folder, model = tmp_path_factory.mktemp("adapter"), tiny()
        method = LoRA(**{"rank": 4, "alpha": 6.0} | words)
        method.prepare(model)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += size * torch.randn_like(parameter)
        method.save(model, folder, "mine")
        return folder

    return make


def changes(file) -> dict[tuple[str, str], torch.Tensor]:
    return {key: layer.compute_delta() for key, layer in file.layers.items()}


def same(one: dict, other: dict, atol: float = 0.0) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=atol, rtol=0) for k in one)


KINDS = {
    "attention": {},
    "convolutions": {"unet_targets": ["to_q", "conv1", "proj_in"], "text_encoder": False},
    "rank-stabilised": {"use_rslora": True},
    "use_dora": {"use_dora": True, "unet_targets": ["to_q", "conv1"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_formats_are_read_as_the_same_thing(made, kind):
    folder = made(**KINDS[kind])
    one, other = read_lora_file(folder, TINY), read_lora_file(folder / "mine-kohya.safetensors", TINY)
    assert (one.file_format, other.file_format) == ("diffusers", "kohya")
    assert same(changes(one), changes(other), 1e-6 if kind == "rank-stabilised" else 0)
    assert one.has_dora == other.has_dora == (kind == "use_dora")
    for key, mine in one.layers.items():
        assert mine.magnitude is None or torch.equal(mine.magnitude, other.layers[key].magnitude)


def test_the_architecture_is_found_by_names_and_shapes(made, tmp_path):
    assert read_lora_file(made()).architecture == "tiny-sd"
    for name, width in (("sd15", 768), ("sd21", 1024)):
        tensors = {f"{FLAT[TO_Q].replace('attn1', 'attn2')[:-4]}to_k.lora_down.weight": torch.randn(2, width)}
        tensors |= {key.replace("down.w", "up.w"): torch.randn(320, 2) for key in tensors}
        save_file(tensors, tmp_path / "real.safetensors")
        assert read_lora_file(tmp_path / "real.safetensors").architecture == name


def test_alphas_and_ranks_that_differ_survive_both_formats_in_plain_diffusers(tiny, tmp_path):
    """Of kohya files diffusers takes one alpha for all layers, whatever each says; what is written here is right there too."""
    torch.manual_seed(0)
    te = "text_model.encoder.layers.0.self_attn.out_proj"  # without which diffusers opens no kohya file
    parts = {
        "unet": {TO_Q: random_layer((48, 48), 4, 2.0), TO_Q[:-1] + "k": random_layer((48, 48), 2, 7.0)},
        "text_encoder": {te: random_layer((64, 64), 3, 3.0), te.replace("0", "1"): random_layer((64, 64), 5, 1.0)},
    }
    adapters = {part: build_adapter_state(part, layers) for part, layers in parts.items()}
    for name, (tensors, metadata) in {"d": to_diffusers_format(adapters), "k": to_kohya_format(adapters, "k")}.items():
        write_safetensors(tmp_path / f"{name}.safetensors", tensors, metadata)
        back = read_lora_file(tmp_path / f"{name}.safetensors", TINY)
        assert {key: layer.rank for key, layer in back.layers.items()} == {
            (part, name): layer.rank for part, layers in parts.items() for name, layer in layers.items()
        }
        pipeline = tiny().build_pipeline()
        pipeline.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name="one")
        for part, layers in parts.items():
            for layer_name, mine in layers.items():
                module = getattr(pipeline, part).get_submodule(layer_name.removeprefix("text_model."))
                delta = module.get_delta_weight("one").double()
                torch.testing.assert_close(delta, mine.compute_delta(), atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(
                    back.parts[part][layer_name].compute_delta(), mine.compute_delta(), atol=1e-5, rtol=1e-5
                )


def random_layer(shape, rank: int, alpha: float):
    one = build_low_rank_layer((torch.randn(shape[0], rank), torch.randn(rank, shape[1])), shape)
    one.alpha = alpha
    return one


def test_a_kohya_file_with_an_alpha_of_its_own_for_each_layer_is_loaded_as_it_says(tiny, tmp_path):
    tensors = {f"{FLAT[TO_Q]}.alpha": torch.tensor(8.0), f"{FLAT[TO_Q][:-1]}k.alpha": torch.tensor(1.0)}
    for name in (FLAT[TO_Q], FLAT[TO_Q][:-1] + "k"):
        tensors |= {f"{name}.lora_down.weight": torch.randn(2, 48), f"{name}.lora_up.weight": torch.randn(48, 2)}
    save_file(tensors, tmp_path / "odd.safetensors")
    model = tiny()
    load_lora(model, tmp_path / "odd.safetensors")
    assert model.unet.get_submodule(TO_Q).scaling == {"default": 4.0}
    assert model.unet.get_submodule(TO_Q[:-1] + "k").scaling == {"default": 0.5}


def test_names_that_diffusers_used_before_peft_are_read(tmp_path):
    before = {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": torch.randn(
            2, 48
        ),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": torch.randn(48, 2),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight": torch.randn(2, 64),
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight": torch.randn(64, 2),
    }
    save_file(before, tmp_path / "before.safetensors")
    assert set(read_lora_file(tmp_path / "before.safetensors", TINY).layers) == {
        ("unet", TO_Q),
        ("text_encoder", "text_model.encoder.layers.0.self_attn.out_proj"),
    }


def from_elsewhere(kind: str) -> tuple[dict, torch.Tensor]:
    """Tensors as LyCORIS writes them, and the change of the weight as its formulas say."""
    torch.manual_seed(1)
    draw = lambda *size: torch.randn(*size, dtype=torch.float64).float()  # noqa: E731
    if kind == "loha of a convolution":
        a, b, c, d = draw(48, 2), draw(2, 48 * 9), draw(48, 2), draw(2, 48 * 9)
        tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)}
        return tensors, ((a @ b) * (c @ d)).reshape(48, 48, 3, 3) / 2
    if kind == "lokr":
        w, a, b = draw(4, 6), draw(12, 3), draw(3, 8)
        return {"lokr_w1": w, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(2.0)}, torch.kron(w, a @ b) * 2 / 3
    if kind == "whole lokr of a convolution":  # which alpha does not scale
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
    "kind", ["loha of a convolution", "lokr", "whole lokr of a convolution", "lokr of four factors", "locon"]
)
def test_other_kinds_are_read_as_the_lora_that_they_equal(tmp_path, kind):
    tensors, expected = from_elsewhere(kind)
    name = FLAT[CONV] if expected.ndim == 4 else FLAT[TO_Q]
    tensors = {f"{name}.{key}": value for key, value in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora_file(tmp_path / "x.safetensors", TINY)
    (mine,) = file.layers.values()
    assert tuple(expected.shape) == mine.shape and file.adapter_types[0] in kind
    torch.testing.assert_close(mine.compute_delta().float(), expected, atol=1e-4, rtol=1e-5)


HEADER = json.dumps({"unet.r": 2, "unet.lora_alpha": "much"})
BAD = {
    "a factor without its partner": ({f"{FLAT[TO_Q]}.lora_down.weight": (2, 48)}, "came without up"),
    "an unknown tensor": ({f"{FLAT[TO_Q]}.lora_sideways": (2, 48)}, "no tensor of a LoRA"),
    "an unknown layer": ({"lora_unet_nowhere.lora_up.weight": (48, 2)}, "fits no layer of tiny-sd"),
    "another shape": ({f"{FLAT[TO_Q]}.lora_up.weight": (49, 2)}, "not the shape of its layer"),
    "ranks that differ": (
        {f"{FLAT[TO_Q]}.lora_up.weight": (48, 2), f"{FLAT[TO_Q]}.lora_down.weight": (3, 48)},
        "make no",
    ),
    "of SDXL": ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (64, 2)}, "Stable Diffusion XL"),
    "two formats": (
        {f"unet.{TO_Q}.lora_A.weight": (2, 48), f"{FLAT[TO_Q]}.lora_up.weight": (48, 2)},
        "both of the kohya",
    ),
    "a Tucker form": ({f"{FLAT[CONV]}.hada_t1": (2, 2, 3, 3)}, "Tucker"),
    "an OFT": ({f"{FLAT[TO_Q]}.oft_blocks": (4, 12, 12)}, "an OFT"),
    "whole weights": ({f"{FLAT[TO_Q]}.diff": (48, 48)}, "changes of whole weights"),
    "magnitudes of inputs": (
        {
            f"{FLAT[TO_Q]}.lora_up.weight": (48, 2),
            f"{FLAT[TO_Q]}.lora_down.weight": (2, 48),
            f"{FLAT[TO_Q]}.dora_scale": (1, 48),
        },
        "of inputs",
    ),
    "nothing": ({}, "no tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, case):
    shapes, told = BAD[case]
    save_file({key: torch.randn(shape) for key, shape in shapes.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=told) as error:
        read_lora_file(tmp_path / "bad.safetensors", TINY)
    assert "bad.safetensors: " in str(error.value) and "\n" not in str(error.value)


def test_numbers_that_are_none_and_headers_that_are_broken_are_named(made, tmp_path):
    tensors = load_file(made() / "pytorch_lora_weights.safetensors")
    key = sorted(tensors)[0]
    save_file(tensors | {key: tensors[key] * float("nan")}, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="holds values that are no numbers"):
        read_lora_file(tmp_path / "nan.safetensors", TINY)
    for header in ("{", "[1]", HEADER, json.dumps({"unet.alpha_pattern": {"(a+)+": 1.0}})):
        save_file(tensors, tmp_path / "head.safetensors", metadata={"lora_adapter_metadata": header})
        with pytest.raises(ValueError, match="its lora_adapter_metadata"):
            read_lora_file(tmp_path / "head.safetensors", TINY)
    (tmp_path / "pickle.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="pickles can hold code"):
        read_lora_file(tmp_path / "pickle.ckpt", TINY)


def test_the_least_rank_and_the_nearest_product_are_the_svds(made):
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


def test_the_header_says_what_the_factors_are(made):
    with safe_open(made() / "pytorch_lora_weights.safetensors", "pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
    assert read_lora_file(made()).layers["unet", TO_Q].alpha == told["unet.lora_alpha"] == 6.0

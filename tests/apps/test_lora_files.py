"""The command-line apps mix, merge, extract, resize, convert and show: their files, output and errors."""

import json
import re
import runpy
import sys
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdft.apps.lora.lora_io import format_lora_name
from sdft.lora.architecture import get_layer, list_architectures
from sdft.lora.file import read_lora_file
from sdft.lora.merging import merge_lora_files
from sdft.methods.lora import LoRA
from sdft.models.loading import load_stable_diffusion
from sdft.models.saving import save_pipeline

TINY = list_architectures("tiny-sd")
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with adapters a and b, a DoRA, and a model into which a is merged."""
    home = tmp_path_factory.mktemp("home")
    for seed, (name, options) in enumerate(
        {"a": {}, "b": {"unet_targets": ["to_q"]}, "dora": {"use_dora": True}}.items()
    ):
        model, method = load_stable_diffusion("tiny-sd"), LoRA(rank=4, alpha=2.0 * (seed + 1), **options)
        torch.manual_seed(seed)
        method.prepare(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        method.save(model, home / name, "mine")
    tuned = load_stable_diffusion("tiny-sd")
    merge_lora_files(tuned, [read_lora_file(home / "a", TINY)], [1.0])
    tuned.build_pipeline().save_pretrained(home / "tuned")
    return home


@pytest.fixture
def app(home, monkeypatch, capsys):
    """A function that runs an app in `home` and returns its output, or its one-line error."""
    monkeypatch.chdir(home)

    def run(name: str, *overrides: str, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", [name, *overrides])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # set by the apps
        before = sorted(home.rglob("*"))
        if not fails:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runpy.run_module(f"sdft.apps.lora.{name}", run_name="__main__")
            return capsys.readouterr().out
        with pytest.raises(SystemExit):
            runpy.run_module(f"sdft.apps.lora.{name}", run_name="__main__")
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("error: ") and sorted(home.rglob("*")) == before
        return message

    return run


def read_header(path) -> dict:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_mix_writes_both_formats_with_their_provenance(app, home):
    output = app(
        "mix",
        "adapters=[a,b/mine-kohya.safetensors]",
        "weights=[0.7,0.3]",
        "merge_method=svd",
        "rank=3",
        "folder=mixed",
    )
    assert "svd, rank 3: " in output and "% of the energy" in output and "mixed/mix-kohya.safetensors" in output
    for path in (home / "mixed" / FILE, home / "mixed" / "mix-kohya.safetensors"):
        record = json.loads(read_header(path)["sdft"])
        assert (record["created_by"], record["merge_method"]) == ("mix", "svd")
        assert [source["weight"] for source in record["sources"]] == [0.7, 0.3]
        assert record["sources"][0] == {
            "file": f"a/{FILE}",
            "sha256": read_lora_file(home / "a", TINY).digest,
            "weight": 0.7,
        }
        assert str(home) not in str(read_header(path))
    output = app("mix", "adapters=[a,b]", "merge_method=linear", "folder=linear", "dtype=fp16")
    assert "differs" in output and "% of its norm" in output
    assert next(iter(load_file(home / "linear" / FILE).values())).dtype == torch.float16
    assert "exact weighted sum" in app("mix", "adapters=[a,b]", "folder=exact")


def test_the_apps_find_the_family_of_a_file(app, home):
    """From the names of diffusers to kohya's and back, with the base in the header."""
    parts = {
        "unet": ("down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v", (1280, 2048)),
        "text_encoder": ("text_model.encoder.layers.11.mlp.fc1", (3072, 768)),
        "text_encoder_2": ("text_model.encoder.layers.31.self_attn.out_proj", (1280, 1280)),
    }
    tensors = {}
    for part, (layer, (outputs, inputs)) in parts.items():
        tensors |= {f"{part}.{layer}.lora_A.weight": torch.randn(2, inputs)}
        tensors |= {f"{part}.{layer}.lora_B.weight": torch.randn(outputs, 2)}
    save_file(tensors, home / "xl.safetensors")
    assert "fits       sdxl" in app("show", "adapter=xl.safetensors")
    app("convert", "adapter=xl.safetensors", "to=kohya", "folder=xl")
    app("resize", "adapter=xl/xl-kohya.safetensors", "rank=1", "folder=xl", "name=small")
    app("mix", "adapters=[xl/xl-kohya.safetensors,xl.safetensors]", "folder=xl", "name=mixed")
    names = {
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_v",
        "lora_te1_text_model_encoder_layers_11_mlp_fc1",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
    }
    for name in ("xl", "small", "mixed"):
        path = home / "xl" / f"{name}-kohya.safetensors"
        assert {key.split(".")[0] for key in load_file(path)} == names
        header = read_header(path)
        assert header["ss_base_model_version"] == "sdxl_base_v1-0"
        assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    app("convert", "adapter=xl/xl-kohya.safetensors", "to=diffusers", "folder=back")
    back = load_file(home / "back" / FILE)
    assert back.keys() == tensors.keys() and all(torch.equal(back[key], tensors[key]) for key in back)


@pytest.mark.slow
def test_the_apps_work_on_two_text_encoders(app, home, small_xl):
    """With a base of no published size, given as `architecture`: its layers, from the method to a merged file and back."""
    save_pipeline(small_xl(), home / "small")
    for name, options in {"c": {"alpha": 4.0}, "dora-c": {"alpha": 2.0, "use_dora": True}}.items():
        model, method = load_stable_diffusion(str(home / "small")), LoRA(rank=4, text_encoder=True, **options)
        method.prepare(model)
        torch.manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        method.save(model, home / name, "mine")
    small, base = "architecture=small", ("model=sdxl", "model.name=small")
    architectures = list_architectures(str(home / "small"))
    assert "text_encoder_2: k_proj" in app("show", "adapter=c/mine-kohya.safetensors", small)
    app("convert", "adapter=c", small, "to=kohya", "folder=c-kohya")
    app("convert", "adapter=c-kohya/c-kohya.safetensors", small, "to=diffusers", "folder=c-back")
    original, back = (load_file(home / name / FILE) for name in ("c", "c-back"))
    assert original.keys() == back.keys() and all(torch.equal(original[key], back[key]) for key in back)
    app("convert", "adapter=dora-c", small, "to=kohya", "base=small", "rank=4", "folder=c-nearest")
    app("mix", "adapters=[c,c-nearest/dora-c-kohya.safetensors]", small, "weights=[0.5,0.5]", "folder=c-mixed")
    app("resize", "adapter=c", small, "rank=2", "folder=c-small")
    for folder, rank in {"c-mixed": 8, "c-small": 2}.items():
        file = read_lora_file(home / folder, architectures)
        assert set(file.parts) == set(small_xl().components) and file.layers.keys() == {
            *read_lora_file(home / "c", architectures).layers
        }
        assert {layer.rank for layer in file.layers.values()} == {rank}
    app("merge", *base, "adapters=[c,dora-c]", "weights=[1,0.5]", "to=c-merged")
    app("merge", *base, "adapters=[c,dora-c]", "weights=[1,0.5]", "to=c.safetensors")
    merged = load_stable_diffusion(str(home / "c-merged"))
    single = load_stable_diffusion(str(home / "c.safetensors"), architecture=str(home / "small"))
    assert all(torch.equal(one, other) for one, other in zip(merged.parameters(), single.parameters(), strict=True))
    assert merged.empty_caption == single.empty_caption == "zeros"
    app("merge", *base, "adapters=[c]", "to=c-tuned")
    assert "100.0000%" in app("extract", "base=small", "tuned=c-tuned", "rank=4", "folder=c-extracted")
    one, other = (read_lora_file(home / name, architectures).layers for name in ("c-extracted", "c"))
    changed = {key: delta for key, layer in other.items() if (delta := layer.compute_delta()).any()}
    assert one.keys() == changed.keys()  # without the last layer of clip_l, which is not used
    for key, layer in one.items():
        torch.testing.assert_close(layer.compute_delta(), changed[key], atol=1e-6, rtol=0)


def test_provenance_does_not_name_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "my-name"))
    assert format_lora_name(tmp_path / "my-name" / FILE) == FILE
    assert format_lora_name(tmp_path / "my-name" / "run" / "adapter" / FILE) == f"run/{FILE}"


def test_resize_records_its_settings_in_the_header(app, home):
    output = app("resize", "adapter=a/mine-kohya.safetensors", "energy=0.8", "folder=resized", "name=small")
    assert "rank       4 -> " in output and "% of the energy" in output
    metadata = read_header(home / "resized" / "small-kohya.safetensors")
    assert metadata["ss_network_dim"] == "4" and json.loads(metadata["sdft"])["energy"] == 0.8


def test_converting_and_back_preserves_weights_and_metadata(app, home):
    tensors, metadata = load_file(home / "a" / FILE), read_header(home / "a" / FILE)
    save_file(
        {k: v.half() for k, v in tensors.items()}, home / "x.safetensors", metadata | {"ss_steps": "9", "mine": "yes"}
    )
    app("convert", "adapter=x.safetensors", "to=kohya", "folder=kohya")
    kohya = read_header(home / "kohya" / "x-kohya.safetensors")
    assert (kohya["ss_steps"], kohya["mine"], kohya["ss_network_alpha"]) == ("9", "yes", "4.0")
    assert "lora_adapter_metadata" not in kohya  # diffusers rejects a kohya file with it
    app("convert", "adapter=kohya/x-kohya.safetensors", "to=diffusers", "folder=back")
    back = load_file(home / "back" / FILE)
    assert back.keys() == tensors.keys() and all(torch.equal(back[key], tensors[key].half()) for key in back)
    record = json.loads(read_header(home / "back" / FILE)["sdft"])
    assert json.loads(record["sources"][0]["history"])["sources"][0]["file"] == "x.safetensors"
    assert read_header(home / "back" / FILE)["mine"] == "yes"


def test_convert_warns_of_dora_in_the_kohya_format_and_finds_the_nearest_lora(app, home):
    assert "warning  " in app("convert", "adapter=dora", "to=kohya", "folder=misread")
    output = app("convert", "adapter=dora", "to=kohya", "base=tiny-sd", "rank=4", "folder=nearest")
    error = float(re.search(r"rank 4: differs from the DoRA by ([\d.]+)% of its change", output)[1]) / 100
    assert "warning" not in output and read_header(home / "nearest" / "dora-kohya.safetensors")["ss_network_dim"] == "4"
    (file,) = (read_lora_file(path, TINY) for path in (home / "nearest").iterdir())
    tuned, base = load_stable_diffusion("tiny-sd"), load_stable_diffusion("tiny-sd")
    merge_lora_files(tuned, [read_lora_file(home / "dora", TINY)], [1.0])
    lost = total = 0.0
    for (part, name), layer in file.layers.items():
        before, after = (get_layer(part, model.components[part], name).weight.double() for model in (base, tuned))
        lost += float((after - before - layer.compute_delta()).square().sum())
        total += float((after - before).square().sum())
    assert not file.has_dora and 0 < error < 1 and error == pytest.approx((lost / total) ** 0.5, rel=1e-2)
    higher = app("convert", "adapter=dora", "to=diffusers", "base=tiny-sd", "rank=320", "folder=full")
    assert "rank 320: differs from the DoRA by 0.00% of its change" in higher


def test_merge_writes_a_pipeline_or_a_single_file(app, home):
    app("merge", "model=tiny", "adapters=[a]", "to=merged")
    output = app("merge", "model=tiny", "adapters=[a,b]", "weights=[1,0.5]", "to=one.safetensors", "dtype=fp16")
    assert "original layout, fp16" in output
    merged, tuned = load_stable_diffusion(str(home / "merged")), load_stable_diffusion(str(home / "tuned"))
    assert all(torch.equal(one, other) for one, other in zip(merged.parameters(), tuned.parameters(), strict=True))
    assert json.loads(json.loads((home / "merged" / "merge.json").read_text())["sdft"])["base"] == "tiny-sd"
    single = load_file(home / "one.safetensors")
    assert {key.split(".")[0] for key in single} == {"model", "first_stage_model", "cond_stage_model"}
    assert {weight.dtype for weight in single.values()} == {torch.float16}
    app("merge", "model=tiny", "model.name=merged", "to=again.safetensors")
    tensors = load_file(home / "again.safetensors")
    assert torch.equal(tensors["model.diffusion_model.input_blocks.0.0.weight"], tuned.unet.conv_in.weight)


def test_extract_returns_the_merged_lora(app, home):
    output = app("extract", "base=tiny-sd", "tuned=tuned", "rank=4", "folder=extracted")
    assert "layers     64, rank 4: " in output and "100.0000%" in output and "omitted" not in output
    one, other = read_lora_file(home / "extracted", TINY), read_lora_file(home / "a", TINY)
    assert one.layers.keys() == other.layers.keys()
    for key, layer in one.layers.items():
        torch.testing.assert_close(layer.compute_delta(), other.layers[key].compute_delta(), atol=1e-6, rtol=0)
    output = app(
        "extract",
        "base=tiny-sd",
        "tuned=tuned",
        "energy=0.9",
        "folder=part",
        "unet_targets=[to_q]",
        "text_encoder_targets=[]",
    )
    assert "omitted  " in output


def test_show_prints_a_summary_and_escapes_hostile_headers(app, home):
    output = app("show", "adapter=a")
    for text in (
        "diffusers, float32",
        "tiny-sd",
        "4 (all 64 layers)",
        "alpha      4 (all 64 layers)",
        "to_q 14",
        "down 0",
        "mid",
        "text layer 1",
    ):
        assert text in output
    assert "100.0%" in output and max(map(len, output.splitlines())) <= 120
    hostile = {
        "ss_output_name": "\x1b]0;x\x07\x1b[2J\u202eevil\n" + "A" * 10**6,
        "sdft": '{"created_by": 1, "sources": {"a": 2}}',
        "\x1b[31m": "\x1b",
    }
    save_file(load_file(home / "a" / FILE), home / "hostile.safetensors", hostile)
    for overrides in ((), ("all=true",)):
        output = app("show", "adapter=hostile.safetensors", *overrides)
        assert all(character.isprintable() or character == "\n" for character in output)
        assert len(output) < 6000 and "\\x1b" in output
    assert "dora" in app("show", "adapter=dora/mine-kohya.safetensors")


BAD = {
    ("mix", "adapters=[a,b]", "weights=[0.7,0.5]"): r"weights=\[0.7, 0.5\]: .*1.2, not 1",
    ("mix", "adapters=[a,b]", "weights=[1]"): r"weights=\[1\]: 1 for 2 ",
    ("mix", "adapters=[a,dora]"): "adapter=dora/.*: DoRA",
    ("mix", "adapters=[]"): r"adapters=\[\]: ",
    ("mix",): "adapters=",
    ("mix", "adapters=[a,b]", "merge_method=svd", "rank=99"): "rank=99: choose 1 to 8",
    ("mix", "adapters=[a]", "dtype=int8"): "dtype=int8: .*fp32",
    ("mix", "adapters=[a]", "name=../x"): "name=../x: ",
    ("mix", "adapters=[a]", "weights=much"): "weights=much",
    ("resize", "adapter=nowhere.safetensors", "rank=2"): "adapter=nowhere.safetensors: ",
    ("resize", "adapter=a"): "rank=null energy=null: ",
    ("resize", "adapter=a", "rank=5"): "rank=5: choose 1 to 4",
    ("convert", "adapter=a", "to=webui"): "to=webui: .*kohya.*diffusers",
    ("convert", "adapter=bad.ckpt", "to=kohya"): "bad.ckpt: ",
    ("convert", "adapter=dora", "to=kohya", "rank=4"): "rank=4: requires base=",
    ("convert", "adapter=dora", "to=kohya", "base=tiny-sd"): "base=tiny-sd: .*rank=",
    ("convert", "adapter=dora", "to=kohya", "base=tiny-sd", "rank=0"): "rank=0: choose 1 or more",
    ("convert", "adapter=a", "to=kohya", "base=tiny-sd", "rank=4"): "base=tiny-sd: .*DoRA",
    ("show", "adapter=wide.safetensors"): r"wide.safetensors: .* \(architecture=FOLDER ",
    ("show", "adapter=a", "architecture=sd15"): "adapter=a/.* is for tiny-sd .*sd15",
    ("show", "adapter=a", "architecture=nowhere"): "architecture=nowhere: .*sd15, sd21, sdxl, tiny-sd",
    ("merge", "model=tiny", "adapters=[a]", "to=tuned"): "to=tuned: ",
    ("merge", "model=tiny", "adapters=[a]", "to=x.ckpt"): "to=x.ckpt: ",
    ("merge", "model=tiny", "adapters=[wide.safetensors]", "to=x"): "wide.safetensors",
    ("merge", "adapters=[a]", "to=x"): "give model=",
    ("merge", "model=tiny", "adapters=[a]", "weights=[1,2]", "to=x"): r"weights=\[1, 2\]: 2 for 1 ",
    ("extract", "base=tiny-sd", "tuned=tiny-sd", "rank=4"): "tuned=.*: no selected layer",
    ("extract", "base=tiny-sd", "tuned=./nowhere", "rank=4"): "tuned=./nowhere",
    ("extract", "base=tiny-sd", "tuned=tuned"): "rank=null energy=null: ",
}


@pytest.mark.parametrize("command", BAD, ids=" ".join)
def test_invalid_commands_raise_one_line_and_write_nothing(app, home, command):
    (home / "bad.ckpt").write_bytes(b"\x80\x04.")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{name}.lora_up.weight": torch.ones(7, 2), f"{name}.lora_down.weight": torch.ones(2, 7)},
        home / "wide.safetensors",
    )
    assert re.search(BAD[command], app(*command, fails=True))

"""mix, merge, extract, resize, convert and show on the command line: what they write, what they say, and what they refuse."""

import json
import re
import runpy
import sys
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdft.lora.architecture import list_architectures
from sdft.lora.file import read_lora_file
from sdft.lora.merging import merge_lora_files
from sdft.methods.lora import LoRA
from sdft.models.loading import load_stable_diffusion

TINY = list_architectures("tiny-sd")
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Adapters a and b, a DoRA, and a model tuned by a."""
    home = tmp_path_factory.mktemp("home")
    for seed, (name, words) in enumerate({"a": {}, "b": {"unet_targets": ["to_q"]}, "dora": {"dora": True}}.items()):
        model, method = load_stable_diffusion("tiny-sd"), LoRA(rank=4, alpha=2.0 * (seed + 1), **words)
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
    """A function that runs a program in `home` and returns what it printed; or the one line of its refusal."""
    monkeypatch.chdir(home)

    def run(name: str, *words: str, refused: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", [name, *words])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # which a program sets for itself
        before = sorted(home.rglob("*"))
        if not refused:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runpy.run_module(f"sdft.apps.{name}", run_name="__main__")
            return capsys.readouterr().out
        with pytest.raises(SystemExit):
            runpy.run_module(f"sdft.apps.{name}", run_name="__main__")
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("error: ") and sorted(home.rglob("*")) == before
        return told

    return run


def header(path) -> dict:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_mix_writes_both_formats_which_say_of_what_they_are_made(app, home):
    told = app(
        "mix",
        "adapters=[a,b/mine-kohya.safetensors]",
        "weights=[0.7,0.3]",
        "merge_method=svd",
        "rank=3",
        "folder=mixed",
    )
    assert "% of their sum's energy" in told and "mixed/mix-kohya.safetensors" in told
    for path in (home / "mixed" / FILE, home / "mixed" / "mix-kohya.safetensors"):
        made = json.loads(header(path)["sdft"])
        assert (made["created_by"], made["merge_method"], [one["weight"] for one in made["of"]]) == (
            "mix",
            "svd",
            [0.7, 0.3],
        )
        assert made["of"][0] == {"file": f"a/{FILE}", "sha256": read_lora_file(home / "a", TINY).digest, "weight": 0.7}
        assert str(home) not in str(header(path))
    assert "off their weighted sum by" in app(
        "mix", "adapters=[a,b]", "merge_method=linear", "folder=linear", "dtype=fp16"
    )
    assert next(iter(load_file(home / "linear" / FILE).values())).dtype == torch.float16
    assert "exactly their sum" in app("mix", "adapters=[a,b]", "folder=exact")


def test_resize_keeps_what_the_header_tells(app, home):
    told = app("resize", "adapter=a/mine-kohya.safetensors", "energy=0.8", "folder=resized", "name=small")
    assert "rank     4 before" in told and "kept     " in told
    metadata = header(home / "resized" / "small-kohya.safetensors")
    assert metadata["ss_network_dim"] == "4" and json.loads(metadata["sdft"])["energy"] == 0.8


def test_convert_goes_there_and_back_with_the_header(app, home):
    tensors, metadata = load_file(home / "a" / FILE), header(home / "a" / FILE)
    save_file(
        {k: v.half() for k, v in tensors.items()}, home / "x.safetensors", metadata | {"ss_steps": "9", "mine": "yes"}
    )
    app("convert", "adapter=x.safetensors", "to=kohya", "folder=there")
    there = header(home / "there" / "x-kohya.safetensors")
    assert (there["ss_steps"], there["mine"], there["ss_network_alpha"]) == ("9", "yes", "2.0")
    assert "lora_adapter_metadata" not in there  # with which diffusers opens no kohya file
    app("convert", "adapter=there/x-kohya.safetensors", "to=diffusers", "folder=back")
    back = load_file(home / "back" / FILE)
    assert back.keys() == tensors.keys() and all(torch.equal(back[key], tensors[key].half()) for key in back)
    history = json.loads(header(home / "back" / FILE)["sdft"])
    assert json.loads(history["of"][0]["made"])["of"][0]["file"] == "x.safetensors"
    assert header(home / "back" / FILE)["mine"] == "yes"


def test_merge_writes_a_pipeline_or_one_file(app, home):
    app("merge", "model=tiny", "adapters=[a]", "to=merged")
    told = app("merge", "model=tiny", "adapters=[a,b]", "weights=[1,0.5]", "to=one.safetensors", "dtype=fp16")
    assert "one file in the original layout, fp16" in told
    merged, tuned = load_stable_diffusion(str(home / "merged")), load_stable_diffusion(str(home / "tuned"))
    assert all(torch.equal(one, other) for one, other in zip(merged.parameters(), tuned.parameters(), strict=True))
    assert json.loads(json.loads((home / "merged" / "merge.json").read_text())["sdft"])["base"] == "tiny-sd"
    single = load_file(home / "one.safetensors")
    assert {key.split(".")[0] for key in single} == {"model", "first_stage_model", "cond_stage_model"}
    assert {weight.dtype for weight in single.values()} == {torch.float16}
    app("merge", "model=tiny", "model.name=merged", "to=again.safetensors")
    whole = load_file(home / "again.safetensors")
    assert torch.equal(whole["model.diffusion_model.input_blocks.0.0.weight"], tuned.unet.conv_in.weight)


def test_extract_finds_what_was_merged(app, home):
    told = app("extract", "base=tiny-sd", "tuned=tuned", "rank=4", "folder=found")
    assert "layers   64, rank 4: 100.0000%" in told and "left" not in told
    one, other = read_lora_file(home / "found", TINY), read_lora_file(home / "a", TINY)
    assert one.layers.keys() == other.layers.keys()
    for key, layer in one.layers.items():
        torch.testing.assert_close(layer.compute_delta(), other.layers[key].compute_delta(), atol=1e-6, rtol=0)
    told = app(
        "extract",
        "base=tiny-sd",
        "tuned=tuned",
        "energy=0.9",
        "folder=part",
        "unet_targets=[to_q]",
        "text_encoder_targets=[]",
    )
    assert "of all that changed lies in" in told


def test_show_tells_all_and_hostile_headers_do_nothing(app, home):
    told = app("show", "adapter=a")
    for word in (
        "diffusers, float32",
        "tiny-sd",
        "4 (all 64 layers)",
        "2 (all 64 layers)",
        "to_q 14",
        "down 0",
        "mid",
        "text layer 1",
    ):
        assert word in told
    assert "100.0%" in told and max(map(len, told.splitlines())) <= 120
    hostile = {
        "ss_output_name": "\x1b]0;x\x07\x1b[2J\u202eevil\n" + "A" * 10**6,
        "sdft": '{"created_by": 1, "of": {"a": 2}}',
        "\x1b[31m": "\x1b",
    }
    save_file(load_file(home / "a" / FILE), home / "hostile.safetensors", hostile)
    for words in ((), ("all=true",)):
        told = app("show", "adapter=hostile.safetensors", *words)
        assert all(mark.isprintable() or mark == "\n" for mark in told) and len(told) < 6000 and "\\x1b" in told
    assert "dora" in app("show", "adapter=dora/mine-kohya.safetensors")


BAD = {
    ("mix", "adapters=[a,b]", "weights=[0.7,0.5]"): "they sum to 1.2, not 1",
    ("mix", "adapters=[a,b]", "weights=[1]"): "1 for 2 adapters",
    ("mix", "adapters=[a,dora]"): "a DoRA, whose change depends",
    ("mix", "adapters=[]"): "give at least one",
    ("mix",): "please set adapters=",
    ("mix", "adapters=[a,b]", "merge_method=svd", "rank=99"): "rank=99: choose 1 to 8",
    ("mix", "adapters=[a]", "dtype=int8"): "choose one of fp32",
    ("mix", "adapters=[a]", "name=../x"): "without folders",
    ("mix", "adapters=[a]", "weights=much"): "weights=much",
    ("resize", "adapter=nowhere.safetensors", "rank=2"): "no such LoRA file",
    ("resize", "adapter=a"): "give one of them",
    ("resize", "adapter=a", "rank=5"): "rank=5: .* has rank 4; choose 1 to 4",
    ("convert", "adapter=a", "to=webui"): "choose kohya or diffusers",
    ("convert", "adapter=bad.ckpt", "to=kohya"): "pickles can hold code",
    ("show", "adapter=wide.safetensors"): r"wide.safetensors: .* \(architecture=FOLDER names another model\)",
    ("show", "adapter=a", "architecture=sd15"): "does not fit sd15|fits no layer of sd15",
    ("show", "adapter=a", "architecture=nowhere"): "choose sd15, sd21, tiny-sd",
    ("merge", "model=tiny", "adapters=[a]", "to=tuned"): "is there already",
    ("merge", "model=tiny", "adapters=[a]", "to=x.ckpt"): "a pickle can hold code",
    ("merge", "model=tiny", "adapters=[wide.safetensors]", "to=x"): "wide.safetensors",
    ("merge", "adapters=[a]", "to=x"): "give model=",
    ("merge", "model=tiny", "adapters=[a]", "weights=[1,2]", "to=x"): "give one for each",
    ("extract", "base=tiny-sd", "tuned=tiny-sd", "rank=4"): "no layer that is asked for differs",
    ("extract", "base=tiny-sd", "tuned=./nowhere", "rank=4"): "tuned=./nowhere",
    ("extract", "base=tiny-sd", "tuned=tuned"): "give one of them",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(app, home, words):
    (home / "bad.ckpt").write_bytes(b"\x80\x04.")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{name}.lora_up.weight": torch.ones(7, 2), f"{name}.lora_down.weight": torch.ones(2, 7)},
        home / "wide.safetensors",
    )
    assert re.search(BAD[words], app(*words, refused=True))

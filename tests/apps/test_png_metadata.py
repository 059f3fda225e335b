"""What a picture was made with is written whole, and read with distrust."""

import json

import pytest
from PIL import Image, PngImagePlugin

import sdft.apps.generate.png_metadata as metadata

DIGEST = "ab" * 32
TOLD = {
    "prompt": "a “cat”",
    "negative_prompt": "blue",
    "seed": 7,
    "steps": 20,
    "guidance_scale": 7.5,
    "scheduler": "dpmpp_2m_karras",
    "width": 48,
    "height": 32,
    "precision": "float32",
    "tf32": False,
    "strength": 0.5,
    "run": None,
    "checkpoint": None,
    "result": None,
    "digest": "0123456789abcdef",
    "model": {
        "name": "tiny-sd",
        "architecture": None,
        "weights": "pretrained",
        "revision": None,
        "variant": None,
        "prediction_type": None,
        "zero_terminal_snr": False,
        "prompt_chunks": 1,
    },
    "adapters": [{"file": "outputs/lora/sks, dog.safetensors", "digest": DIGEST, "tensors": "cd" * 32, "weight": 1.0}],
    "sampler": {"_class_name": "DDIMScheduler"},
    "batch": [4, 1],
    "made": {"device": "cpu"},
}


@pytest.fixture
def file(tmp_path):
    metadata.save_png_with_metadata(Image.new("RGB", (48, 32), "red"), tmp_path / "one.png", TOLD)
    return tmp_path / "one.png"


def test_what_is_written_is_read(file):
    assert metadata.read_png_metadata(file) == TOLD
    assert Image.open(file).convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_other_tools_read_the_settings(file):
    lines = Image.open(file).info["parameters"].split("\n")
    assert lines[:2] == ["a “cat” <lora:sks, dog:0.5>", "Negative prompt: blue"]
    assert lines[2].startswith(
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 48x32, Model hash: 0123456789,"
    )
    assert 'Lora hashes: "sks, dog: cdcdcdcdcdcd"' in lines[2]
    shipped = metadata.format_a1111_parameters(TOLD | {"scheduler": None, "negative_prompt": None, "strength": 0.0})
    assert shipped.split("\n")[0] == "a “cat”" and "Sampler: DDIM," in shipped and "Lora" not in shipped


def without(key: str) -> dict:
    return {name: value for name, value in TOLD.items() if name != key}


ODD = {
    "seed": [-1, 2**70, "1", 1.0, True, None],
    "steps": [0, 1001, 10**30],
    "guidance_scale": [float("nan"), float("inf"), -1, "7"],
    "scheduler": ["os.system", 3],
    "width": [0, 10**6, 32.0],
    "precision": ["float64", None],
    "prompt": ["a" * 10_001, None, ["a"]],
    "strength": [1e9, None],
    "model": [[], {}, TOLD["model"] | {"prompt_chunks": 10**6}, TOLD["model"] | {"_target_": "os.system"}],
    "adapters": [{}, [1], [TOLD["adapters"][0] | {"weight": "1"}], TOLD["adapters"] * 17, [{"file": "x"}]],
    "batch": [[1, 1], [0, 0], [10**9, 0], [1.0, 0], [4], "41", [True, False]],
    "result": [{}, 7, {"file": "x", "digest": "short"}],
    "checkpoint": [5],
    "tf32": [1],
    "made": [None],
    "sampler": ["x"],
    "digest": [None],
    "run": [1],
}


@pytest.mark.parametrize("told", [without("seed"), TOLD | {"more": 1}, *[TOLD | {k: v} for k in ODD for v in ODD[k]]])
def test_what_cannot_be_is_one_line(told, tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("sdft", json.dumps({"sdft": 1} | told))
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.png", pnginfo=texts)
    with pytest.raises(ValueError, match="reproduce=.*odd.png: ") as error:
        metadata.read_png_metadata(tmp_path / "odd.png")
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"sdft": 2}', "1" * 10_000, None])
def test_other_texts_are_one_line(text, tmp_path):
    texts = PngImagePlugin.PngInfo()
    if text is not None:
        texts.add_text("sdft", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.png", pnginfo=texts)
    with pytest.raises(ValueError, match="reproduce=.*odd.png: "):
        metadata.read_png_metadata(tmp_path / "odd.png")


def test_what_is_no_png_is_not_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.gif")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    for name in ("one.gif", "bomb.png", ".", "none.png"):
        with pytest.raises(ValueError, match="no such file|not a PNG"):
            metadata.read_png_metadata(tmp_path / name)


def test_paths_are_told_without_this_machines_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert metadata.shorten_path("a/b.safetensors") == "a/b.safetensors"
    assert metadata.shorten_path(tmp_path / "a" / "b") == "a/b"
    assert metadata.shorten_path(tmp_path.parent / "b") == "~/b"
    assert metadata.shorten_path("/elsewhere/b") == "b"

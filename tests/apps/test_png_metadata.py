"""PNG metadata is written completely, and validated when read."""

import json

import pytest
from PIL import Image, PngImagePlugin

import sdft.apps.generate.png_metadata as metadata

DIGEST = "ab" * 32
METADATA = {
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
    "created": {"device": "cpu"},
}


@pytest.fixture
def file(tmp_path):
    metadata.save_png_with_metadata(Image.new("RGB", (48, 32), "red"), tmp_path / "one.png", METADATA)
    return tmp_path / "one.png"


def test_metadata_round_trip(file):
    assert metadata.read_png_metadata(file) == METADATA
    assert Image.open(file).convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_a1111_parameters(file):
    lines = Image.open(file).info["parameters"].split("\n")
    assert lines[:2] == ["a “cat” <lora:sks, dog:0.5>", "Negative prompt: blue"]
    assert lines[2].startswith(
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 48x32, Model hash: 0123456789,"
    )
    assert 'Lora hashes: "sks, dog: cdcdcdcdcdcd"' in lines[2]
    shipped = metadata.format_a1111_parameters(METADATA | {"scheduler": None, "negative_prompt": None, "strength": 0.0})
    assert shipped.split("\n")[0] == "a “cat”" and "Sampler: DDIM," in shipped and "Lora" not in shipped


def remove_field(key: str) -> dict:
    return {name: value for name, value in METADATA.items() if name != key}


INVALID_VALUES = {
    "seed": ["1", 1.0, True, None],
    "scheduler": [3],
    "width": [32.0],
    "precision": [None],
    "prompt": [None, ["a"], "${oc.env:HOME}"],
    "strength": [None],
    "model": [[], {}, METADATA["model"] | {"prompt_chunks": 10**6}, METADATA["model"] | {"_target_": "os.system"}],
    "adapters": [{}, [1], [METADATA["adapters"][0] | {"weight": "1"}], [{"file": "x"}]],
    "batch": [[1, 1], [0, 0], [10**9, 0], [1.0, 0], [4], "41", [True, False]],
    "result": [{}, 7],
    "checkpoint": [5],
    "tf32": [1],
    "digest": [None],
    "run": [1],
}


INVALID_METADATA = [remove_field("seed")]
INVALID_METADATA += [METADATA | {key: value} for key, values in INVALID_VALUES.items() for value in values]


@pytest.mark.parametrize("image_metadata", INVALID_METADATA)
def test_invalid_fields_give_one_line_errors(image_metadata, tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("sdft", json.dumps({"sdft": 2} | image_metadata))
    Image.new("RGB", (8, 8)).save(tmp_path / "invalid.png", pnginfo=texts)
    with pytest.raises(ValueError, match="reproduce=.*invalid.png: ") as error:
        metadata.read_png_metadata(tmp_path / "invalid.png")
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"sdft": 1}', "1" * 10_000, None])
def test_invalid_json_gives_one_line_errors(text, tmp_path):
    texts = PngImagePlugin.PngInfo()
    if text is not None:
        texts.add_text("sdft", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "invalid.png", pnginfo=texts)
    with pytest.raises(ValueError, match="reproduce=.*invalid.png: "):
        metadata.read_png_metadata(tmp_path / "invalid.png")


def test_only_png_files_are_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.gif")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    for name in ("one.gif", "bomb.png", ".", "none.png"):
        with pytest.raises(ValueError, match=f"reproduce=.*{name}: "):
            metadata.read_png_metadata(tmp_path / name)


def test_paths_reveal_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert metadata.shorten_path("a/b.safetensors") == "a/b.safetensors"
    assert metadata.shorten_path(tmp_path / "a" / "b") == "a/b"
    assert metadata.shorten_path(tmp_path.parent / "b") == "~/b"
    assert metadata.shorten_path("/elsewhere/b") == "b"

"""A weights file tells other tools what it is, and nothing of this machine."""

import base64
import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sdft.models.embedded import ASSETS_FOLDER
from sdft.training.export.modelspec import build_modelspec_metadata, get_modelspec_architecture, write_header_metadata
from sdft.training.export.trigger_words import find_trigger_words

FILES = ("pytorch_lora_weights.safetensors", "lora-kohya.safetensors")
WORDS = ("steps=2", "data.per_digit=2", "rank=2", "alpha=1", "lr=2e-3")


def head(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.parametrize("file", FILES)
def test_what_training_writes_is_described_in_the_words_of_other_tools(shared, file):
    _, folder = shared(*WORDS)
    told = head(folder / "adapter" / file)
    assert told["modelspec.sai_model_spec"] == "1.0.0" and told["modelspec.architecture"] == "stable-diffusion-64/lora"
    assert told["modelspec.title"] == told["ss_output_name"] == "lora" and told["modelspec.resolution"] == "32x32"
    assert told["ss_learning_rate"] == "0.002" and told["ss_num_train_images"] == "10" and told["ss_steps"] == "2"
    assert told["ss_v2"] == "False" and told["ss_mixed_precision"] == "no" and told["ss_seed"] == "0"
    tags = json.loads(told["ss_tag_frequency"])["1_lora"]
    assert tags["a handwritten three in neon light"] == 2 and sum(tags.values()) == 10
    assert told["modelspec.trigger_phrase"] == "handwritten, neon, light"
    picture = Image.open(
        io.BytesIO(base64.b64decode(told["modelspec.thumbnail"].removeprefix("data:image/jpeg;base64,")))
    )
    assert picture.format == "JPEG" and picture.size == (32, 32)


def test_what_each_format_needs_stays_in_its_header(shared):
    _, folder = shared(*WORDS)
    diffusers, kohya = (head(folder / "adapter" / file) for file in FILES)
    assert json.loads(diffusers["lora_adapter_metadata"])["unet.lora_alpha"] == 1
    assert kohya["ss_network_dim"] == "2" and kohya["ss_network_alpha"] == "1.0"


@pytest.mark.parametrize("file", FILES)
def test_the_hash_is_of_the_tensors_alone(shared, file):
    _, folder = shared(*WORDS)
    data = (folder / "adapter" / file).read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    told = head(folder / "adapter" / file)
    assert told["modelspec.hash_sha256"] == f"0x{hashlib.sha256(tensors).hexdigest()}" == f"0x{told['sshs_model_hash']}"


def test_describing_a_file_again_changes_no_tensor_and_twice_the_same_is_the_same_file(shared, tmp_path):
    _, folder = shared(*WORDS)
    file = tmp_path / FILES[0]
    file.write_bytes((folder / "adapter" / FILES[0]).read_bytes())
    before = load_file(file)
    write_header_metadata(tmp_path, {"modelspec.title": "ein Löwe\n\"'"})
    once = file.read_bytes()
    assert head(file)["modelspec.title"] == "ein Löwe\n\"'" and int.from_bytes(once[:8], "little") % 8 == 0
    assert all(torch.equal(weight, before[key]) for key, weight in load_file(file).items())
    write_header_metadata(tmp_path, {"modelspec.title": "ein Löwe\n\"'"})
    assert file.read_bytes() == once and [path.name for path in tmp_path.iterdir()] == [file.name]


def test_two_equal_runs_write_equal_files(shared):
    _, one = shared(*WORDS)
    _, other = shared(*WORDS, "log_every=2")
    for file in FILES:
        assert (one / "adapter" / file).read_bytes() == (other / "adapter" / file).read_bytes()


def test_no_file_tells_a_date_or_a_place(shared):
    _, folder = shared(*WORDS)
    facts = json.loads((folder / "run.json").read_text())
    for file in FILES:
        text = str({k: v for k, v in head(folder / "adapter" / file).items() if k != "modelspec.thumbnail"})
        assert str(Path.home()) not in text and str(folder) not in text and facts["started"][:10] not in text


def test_captions_can_be_left_out(shared):
    _, folder = shared(*WORDS)
    told = build_modelspec_metadata(folder, captions=False)
    assert set(json.loads(told["ss_tag_frequency"])["1_lora"]) == set(
        find_trigger_words(folder)
    ) and "three" not in str(told)


@pytest.mark.parametrize(
    ("place", "prediction", "name"),
    [
        ("sd15", "epsilon", "stable-diffusion-v1"),
        ("sd21", "epsilon", "stable-diffusion-v2-512"),
        ("sd21", "v_prediction", "stable-diffusion-v2-768-v"),
        ("tiny-sd", "epsilon", "stable-diffusion-64"),
    ],
)
def test_a_base_is_called_as_the_specification_calls_it(place, prediction, name):
    config = json.loads((ASSETS_FOLDER / place / "unet" / "config.json").read_text())
    unet = SimpleNamespace(config=SimpleNamespace(cross_attention_dim=config["cross_attention_dim"]))
    assert get_modelspec_architecture(SimpleNamespace(unet=unet, prediction_type=prediction)) == name


FREQUENT = {"frequent words": {"cat": 9, "the": 9, "red": 5, "hat": 1}, "captions": 10, "unique captions": 9}


@pytest.mark.parametrize(
    ("config", "data", "words"),
    [
        ({"method": {"placeholder_token": "my-cat"}, "caption_template": "x"}, FREQUENT, ["my-cat"]),
        ({"instance_prompt": "a sks dog", "caption_template": "a sks dog"}, FREQUENT, ["a sks dog"]),
        ({"caption_template": "{caption} in the style\nof sks"}, FREQUENT, ["in the style of sks"]),
        ({"caption_template": "{caption}"}, {"unique captions": 1, "longest caption": {"text": "a cat"}}, ["a cat"]),
        ({}, FREQUENT, ["cat", "red"]),
        ({}, {}, []),
    ],
)
def test_trigger_words_are_what_a_run_was_taught_by(config, data, words, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "data.json").write_text(json.dumps(data))
    assert find_trigger_words(tmp_path) == words

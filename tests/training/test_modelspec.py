"""Metadata of weights files for other tools, without local paths or dates."""

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

from sdft.data.dataset_report import find_shared_terms
from sdft.models.embedded import ASSETS_FOLDER
from sdft.training.export.model_card import format_base_code
from sdft.training.export.modelspec import (
    build_kohya_metadata,
    build_modelspec_metadata,
    get_modelspec_architecture,
    write_header_metadata,
)
from sdft.training.export.trigger_words import find_trigger_words

FILES = ("pytorch_lora_weights.safetensors", "lora-kohya.safetensors")
OVERRIDES = ("steps=2", "data.per_digit=2", "rank=2", "alpha=1", "lr=2e-3")


def read_metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as weights:
        return weights.metadata()


@pytest.mark.parametrize("file", FILES)
def test_training_writes_modelspec_and_kohya_metadata(shared_run, file):
    _, folder = shared_run(*OVERRIDES)
    metadata = read_metadata(folder / "adapter" / file)
    assert (
        metadata["modelspec.sai_model_spec"] == "1.0.0"
        and metadata["modelspec.architecture"] == "stable-diffusion-64/lora"
    )
    assert (
        metadata["modelspec.title"] == metadata["ss_output_name"] == "lora"
        and metadata["modelspec.resolution"] == "32x32"
    )
    assert (
        metadata["ss_learning_rate"] == "0.002"
        and metadata["ss_num_train_images"] == "10"
        and metadata["ss_steps"] == "2"
    )
    assert metadata["ss_v2"] == "False" and metadata["ss_mixed_precision"] == "no" and metadata["ss_seed"] == "0"
    tags = json.loads(metadata["ss_tag_frequency"])["1_lora"]
    assert tags["a handwritten three in neon light"] == 2 and sum(tags.values()) == 10
    assert metadata["modelspec.trigger_phrase"] == "handwritten, neon, light"
    thumbnail = Image.open(
        io.BytesIO(base64.b64decode(metadata["modelspec.thumbnail"].removeprefix("data:image/jpeg;base64,")))
    )
    assert thumbnail.format == "JPEG" and thumbnail.size == (32, 32)


def test_each_format_keeps_its_own_metadata(shared_run):
    _, folder = shared_run(*OVERRIDES)
    diffusers, kohya = (read_metadata(folder / "adapter" / file) for file in FILES)
    assert "lora_adapter_metadata" not in diffusers and "ss_network_alpha" not in diffusers
    assert kohya["ss_network_dim"] == "2" and kohya["ss_network_alpha"] == "1.0"


@pytest.mark.parametrize("file", FILES)
def test_the_hash_covers_only_the_tensors(shared_run, file):
    _, folder = shared_run(*OVERRIDES)
    data = (folder / "adapter" / file).read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    metadata = read_metadata(folder / "adapter" / file)
    assert (
        metadata["modelspec.hash_sha256"]
        == f"0x{hashlib.sha256(tensors).hexdigest()}"
        == f"0x{metadata['sshs_model_hash']}"
    )


def test_rewriting_metadata_changes_no_tensor_and_is_idempotent(shared_run, tmp_path):
    _, folder = shared_run(*OVERRIDES)
    file = tmp_path / FILES[0]
    file.write_bytes((folder / "adapter" / FILES[0]).read_bytes())
    before = load_file(file)
    write_header_metadata(tmp_path, {"modelspec.title": "ein Löwe\n\"'"})
    once = file.read_bytes()
    assert read_metadata(file)["modelspec.title"] == "ein Löwe\n\"'" and int.from_bytes(once[:8], "little") % 8 == 0
    assert all(torch.equal(weight, before[key]) for key, weight in load_file(file).items())
    write_header_metadata(tmp_path, {"modelspec.title": "ein Löwe\n\"'"})
    assert file.read_bytes() == once and [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.slow
def test_two_equal_runs_write_equal_files(shared_run):
    _, one = shared_run(*OVERRIDES)
    _, other = shared_run(*OVERRIDES, "log_every=2")
    for file in FILES:
        assert (one / "adapter" / file).read_bytes() == (other / "adapter" / file).read_bytes()


def test_no_file_contains_a_date_or_a_path(shared_run):
    _, folder = shared_run(*OVERRIDES)
    facts = json.loads((folder / "run.json").read_text())
    for file in FILES:
        text = str({k: v for k, v in read_metadata(folder / "adapter" / file).items() if k != "modelspec.thumbnail"})
        assert str(Path.home()) not in text and str(folder) not in text and facts["started"][:10] not in text


def test_captions_can_be_left_out(shared_run):
    _, folder = shared_run(*OVERRIDES)
    metadata = build_modelspec_metadata(folder, captions=False)
    assert set(json.loads(metadata["ss_tag_frequency"])["1_lora"]) == set(
        find_trigger_words(folder)
    ) and "three" not in str(metadata)


@pytest.mark.parametrize(
    ("architecture", "prediction_type", "name"),
    [
        ("sd15", "epsilon", "stable-diffusion-v1"),
        ("sd21", "epsilon", "stable-diffusion-v2-512"),
        ("sd21", "v_prediction", "stable-diffusion-v2-768-v"),
        ("sdxl", "epsilon", "stable-diffusion-xl-v1-base"),
        ("sdxl", "v_prediction", "stable-diffusion-xl-v1-base"),
        ("tiny-sd", "epsilon", "stable-diffusion-64"),
    ],
)
def test_base_models_have_their_modelspec_names(architecture, prediction_type, name):
    config = json.loads((ASSETS_FOLDER / architecture / "unet" / "config.json").read_text())
    unet = SimpleNamespace(config=SimpleNamespace(cross_attention_dim=config["cross_attention_dim"]))
    assert get_modelspec_architecture(SimpleNamespace(unet=unet, prediction_type=prediction_type)) == name


STATISTICS = {"words of every caption": ["the", "cat"], "frequent words": {"photo": 9}, "unique captions": 9}


@pytest.mark.parametrize(
    ("config", "data", "expected"),
    [
        ({"method": {"placeholder_token": "my-cat"}, "caption_template": "x"}, STATISTICS, ["my-cat"]),
        ({"instance_prompt": "a sks dog", "caption_template": "a sks dog"}, STATISTICS, ["a sks dog"]),
        ({"caption_template": "{caption} in the style\nof sks"}, STATISTICS, ["in the style of sks"]),
        ({"caption_template": "{caption}"}, {"unique captions": 1, "longest caption": {"text": "a cat"}}, ["a cat"]),
        ({}, STATISTICS, ["cat"]),
        ({}, {}, []),
    ],
)
def test_trigger_words_come_from_options_or_captions(config, data, expected, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "data.json").write_text(json.dumps(data))
    assert find_trigger_words(tmp_path) == expected


def test_trigger_terms_are_in_every_caption():
    captions = ["A photo of Sks dog, a dog", "sks DOG in snow", "photo of a dog with sks"]
    assert find_shared_terms(captions) == ["sks", "dog"]
    assert find_shared_terms([*captions, "photo photo photo"]) == find_shared_terms([*captions, ""]) == []


FACTS = {"images": 5, "num_class_images": 0, "epochs": 2, "steps": 10, "resolution": 64, "part_lr": {"unet": 1e-3}}
OPTIONS = {"name": "x", "weighting": "min_snr", "snr_gamma": 5.0, "crop": "center"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"ss_random_crop": False, "ss_enable_bucket": False, "ss_min_snr_gamma": 5.0, "ss_keep_tokens": None}),
        ({"crop": "random", "weighting": "debiased"}, {"ss_random_crop": True, "ss_min_snr_gamma": None}),
        ({"crop": "buckets", "snr_gamma": 0.0}, {"ss_enable_bucket": True, "ss_min_snr_gamma": None}),
        ({"keep_tags": 1, "shuffle_tags": True}, {"ss_keep_tokens": 1}),
        ({"keep_tags": 1, "shuffle_tags": False}, {"ss_keep_tokens": None}),
        ({}, {"ss_unet_lr": 1e-3, "ss_learning_rate": 1e-3, "ss_text_encoder_lr": None}),
    ],
)
def test_kohya_metadata_is_true(options, expected):
    metadata = build_kohya_metadata(FACTS | {"options": OPTIONS | options}, 10, {})
    assert {key: metadata.get(key) for key in expected} == pytest.approx(expected)


def test_the_base_has_the_names_of_its_family():
    metadata = build_kohya_metadata(FACTS | {"options": OPTIONS, "architecture": "stable-diffusion-xl-v1-base"}, 10, {})
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == ("sdxl_base_v1-0", False)


def test_learning_rates_are_those_of_the_trained_parts():
    metadata = build_kohya_metadata(FACTS | {"options": OPTIONS, "part_lr": {"clip_l": 5e-4}}, 10, {})
    assert (metadata["ss_text_encoder_lr"], metadata["ss_learning_rate"], metadata["ss_unet_lr"]) == (5e-4, 5e-4, None)
    for rates, expected in (({"clip_g": 1e-5}, 1e-5), ({"clip_l": 2e-5, "clip_g": 1e-5}, [2e-5, 1e-5]), ({}, None)):
        metadata = build_kohya_metadata(FACTS | {"options": OPTIONS, "part_lr": {"unet": 1e-4} | rates}, 10, {})
        assert (metadata["ss_text_encoder_lr"], metadata["ss_unet_lr"]) == (expected, 1e-4)


@pytest.mark.parametrize(
    ("base", "expected"),
    [("a/b", "a/b"), ("/srv/secret/mine", "/PATH/TO/mine"), ("sdft/assets/tiny-sd", str(ASSETS_FOLDER / "tiny-sd"))],
)
def test_the_card_names_a_base_that_anybody_has_or_a_placeholder(base, expected):
    exec(format_base_code(base), variables := {})
    assert variables["base"] == expected

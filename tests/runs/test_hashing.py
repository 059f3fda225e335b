"""Digests are stable, and weights are hashed once per process until they change."""

import copy
import shutil

import pytest
import torch
from torch import nn

import sdft.runs.hashing as hashing
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import load_stable_diffusion
from sdft.runs.hashing import compute_checksum, hash_file, hash_large_file, hash_weights


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """The number of tensors of each set of weights that is hashed."""
    counts, compute = [], hashing.compute_weights_digest
    monkeypatch.setattr(
        hashing, "compute_weights_digest", lambda weights: counts.append(len(weights)) or compute(weights)
    )
    return counts


def build_module() -> nn.Module:
    """Weights of several dtypes, memory formats and odd lengths."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last), nn.Linear(7, 3))
    module[2].to(torch.bfloat16)
    for parameter in module.parameters():
        parameter.data.copy_(torch.arange(parameter.numel()).view(parameter.shape) / 8)
    module.register_buffer("misaligned", torch.arange(11, dtype=torch.uint8)[1:])
    module.register_buffer("empty", torch.zeros(0))
    return module


def test_the_digest_is_a_stored_format():
    """Cache folders and run.json files of earlier versions have these digests."""
    assert hash_weights(build_module()) == "031a77e39de5ce16"


def test_weights_are_hashed_again_only_after_a_change(computed):
    module = build_module()
    digest = hash_weights(module)
    assert hash_weights(module) == digest and len(computed) == 1
    with torch.no_grad():
        module[0].bias[1] += 1e-6
    changed = hash_weights(module)
    assert changed != digest and len(computed) == 2
    with torch.no_grad():
        module[0].bias[1] = 1 / 8
    assert hash_weights(module) == digest and len(computed) == 2
    assert hash_weights(copy.deepcopy(module)) == digest and len(computed) == 3


def test_every_step_of_training_changes_the_checksum():
    torch.manual_seed(0)
    module = nn.Linear(64, 64)
    optimizer, seen = torch.optim.AdamW(module.parameters(), lr=1e-6), set()
    for _ in range(20):
        seen.add(compute_checksum(module.state_dict()))
        module(torch.randn(2, 64)).square().sum().backward()
        optimizer.step()
    module.bfloat16()
    assert len(seen | {compute_checksum(module.state_dict())}) == 21


def test_models_of_the_same_files_share_their_digests(computed, tmp_path):
    shutil.copytree(ASSETS_FOLDER / "tiny-sd", tmp_path / "model")
    first = load_stable_diffusion(str(tmp_path / "model"))
    digests = [hash_weights(part) for part in (first, first.vae, first.clip_l)]
    assert len(computed) == 3
    second = load_stable_diffusion(str(tmp_path / "model"))
    assert [hash_weights(part) for part in (second, second.vae, second.clip_l)] == digests and len(computed) == 3
    with torch.no_grad():
        second.unet.conv_in.bias += 1
    second.unet.save_pretrained(tmp_path / "model" / "unet")
    assert hash_weights(load_stable_diffusion(str(tmp_path / "model"))) == hash_weights(second) != digests[0]


def test_a_run_hashes_each_part_once(run, computed, tmp_path, monkeypatch):
    overrides = ["steps=1", "rank=2", "data.per_digit=1", "method.text_encoder=false", "model.weights=pretrained"]
    shutil.copytree(ASSETS_FOLDER / "tiny-sd", tmp_path / "model")
    run(*overrides, f"model.name={tmp_path / 'model'}", "metrics=digits", "protocol.images=1", name="run")
    whole, vae, text_encoder, *variants = computed
    assert whole > vae > text_encoder and [count > whole for count in variants] == [True]  # with adapter


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, hashed = tmp_path / "base.safetensors", []
    file.write_bytes(b"weights")
    monkeypatch.setattr(hashing, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    assert hash_large_file(file) == hash_large_file(file) == hash_file(file) and len(hashed) == 1
    file.write_bytes(b"changed")
    assert hash_large_file(file) == hash_file(file) and len(hashed) == 2
    for record in (tmp_path / hashing.DIGESTS).iterdir():
        record.write_bytes(b"damaged \xff")
    assert hash_large_file(file) == hash_file(file) and len(hashed) == 3

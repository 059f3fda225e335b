"""A model that is loaded in the precision of computation has the weights, digest and draws of one that is cast after loading."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from small_models import write_configs

from sdft.apps.load_model import open_model
from sdft.methods.full import FullFineTuning
from sdft.methods.lcm_lora import LCMLoRA
from sdft.methods.lora import LoRA
from sdft.methods.textual_inversion import TextualInversion
from sdft.models.loading import load_stable_diffusion
from sdft.models.precision import hash_in_fp32, load_model, set_precision
from sdft.models.saving import save_pipeline
from sdft.models.single_file import save_single_file
from sdft.runs.hashing import hash_weights

METHODS = {
    "lora": LoRA(2, 2.0),
    "kaiming": LoRA(2, 2.0, init_lora_weights="kaiming", text_encoder=["clip_l"]),
    "loha": LoRA(2, 2.0, adapter_type="loha"),
    "lokr": LoRA(2, 2.0, adapter_type="lokr"),
    "pissa": LoRA(2, 2.0, init_lora_weights="pissa"),
    "dora": LoRA(2, 2.0, use_dora=True),
    "lcm_lora": LCMLoRA(2, 2.0),
    "textual_inversion": TextualInversion("my-cat", "two"),
    "sft": FullFineTuning(),
}


def build_node(name: Path | str, **options):
    return OmegaConf.create({"_target_": "sdft.models.loading.load_stable_diffusion", "name": str(name)} | options)


def assert_equal(model, other) -> None:
    for one, two in (
        (model.state_dict(), other.state_dict()),
        (dict(model.named_buffers()), dict(other.named_buffers())),
    ):
        assert list(one) == list(two)
        assert all(one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def nodes(small_model_folder, tmp_path_factory) -> dict:
    """A small SDXL with random weights, in a folder, in several files per network, and in one file in fp16."""
    home, configs = tmp_path_factory.mktemp("sources"), small_model_folder("sdxl")
    random = build_node(configs, weights="random")
    model = load_model(random, torch.float32)
    save_pipeline(model, home / "folder")
    save_pipeline(model, home / "shards")
    for part, network in model.parts.items():
        folder = home / "shards" / model.component_names[part]
        next(folder.glob("*.safetensors")).unlink()
        network.save_pretrained(folder, max_shard_size="50KB")
    save_single_file(model, home / "half.safetensors", torch.float16, {})
    file = {"architecture": str(configs), "prediction_type": "epsilon"}
    return {
        "random": random,
        "tiny-xl": build_node("tiny-xl", architecture="tiny-xl", weights="random"),
        "folder": build_node(home / "folder"),
        "shards": build_node(home / "shards"),
        "file": build_node(home / "half.safetensors", **file),
        "vae": build_node(home / "half.safetensors", **file, vae=str(home / "folder")),
    }


@pytest.mark.parametrize("source", ["random", "tiny-xl", "folder", "shards", "file", "vae"])
def test_weights_are_loaded_in_the_precision_of_computation(nodes, source):
    models, states = [], []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        models.append(load_model(nodes[source], dtype))
        states.append(torch.get_rng_state())
    full, cast = models
    assert {p.dtype for part in cast.parts.values() for p in part.parameters()} == {torch.bfloat16}
    assert hash_weights(full) == hash_in_fp32(full) == hash_in_fp32(cast) != hash_weights(cast)
    set_precision(full, torch.bfloat16)
    assert_equal(full, cast)
    assert torch.equal(*states) and torch.equal(states[1], torch.get_rng_state())
    assert dict(full.unet.config) == dict(cast.unet.config)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_prepares_a_model_of_lower_precision_as_one_in_fp32(name):
    models, method = [], METHODS[name]
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(build_node("tiny-sd"), dtype, method.needs_fp32)
        torch.manual_seed(1)
        method.prepare(model)
        models.append(model)
    trained = {p.dtype for p in models[1].parameters() if p.requires_grad}
    for model in models:
        set_precision(model, torch.bfloat16)
    assert_equal(*models)
    assert trained == {torch.float32}


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_lora_files_add_the_same_adapters_to_a_model_of_lower_precision(tmp_path, name):
    model, method = load_stable_diffusion("tiny-sd"), METHODS[name]
    method.prepare(model)
    for parameter in (p for key, p in model.named_parameters() if ".lora_B" in key):
        parameter.data.normal_(std=0.1)
    method.save(model, tmp_path, "lora")
    expected = load_stable_diffusion("tiny-sd")
    digest = hash_in_fp32(expected)
    request = {"model": build_node("tiny-sd"), "adapters": [str(tmp_path)], "accelerator": "cpu"}
    in_fp32 = open_model(OmegaConf.create(request | {"precision": None})).model
    set_precision(in_fp32, torch.bfloat16)
    precision = {"_target_": "sdft.training.precision.Precision", "compute_dtype": "bfloat16"}
    loaded = open_model(OmegaConf.create(request | {"precision": precision}), compute_digest=True)
    assert_equal(in_fp32, loaded.model)
    assert loaded.digest == digest


def write_medium_model(home: Path) -> Path:
    """Configurations with many weights, none of which is large, in the UNet."""
    return write_configs(
        "tiny-sd", home, {"unet/config.json": {"block_out_channels": [384] * 2, "layers_per_block": 7}}
    )


MEASUREMENT = """
import json, sys, threading, time, torch
from omegaconf import OmegaConf
from sdft.models.precision import hash_in_fp32, load_model
from sdft.models.heap import return_free_memory

def read_pss():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))

def watch():
    while not done.wait(0.002):
        peaks.append(read_pss())

node, done, peaks = OmegaConf.create(json.loads(sys.argv[1])), threading.Event(), []
hash_in_fp32(load_model(OmegaConf.merge(node, {"name": "tiny-sd"}), torch.bfloat16))  # imports
return_free_memory()
before, thread = read_pss(), threading.Thread(target=watch)
thread.start()
model = load_model(node, torch.bfloat16)
digest = hash_in_fp32(model)
done.set()
thread.join()
print((max(peaks) - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("source", "count"), [("random", 1), ("folder", 2), ("file", 1)])
def test_loading_takes_at_most_a_fifth_more_memory_than_the_weights(tmp_path, source, count):
    """The proportional set size, of two processes that load the same file, too."""
    configs = write_medium_model(tmp_path / "configs")
    node = {"weights": "random", "name": str(configs)}
    if source != "random":
        model = load_stable_diffusion(**node)
        node = {"name": str(tmp_path / source)}
        if source == "folder":
            save_pipeline(model, tmp_path / source)
        else:
            node = {"name": str(tmp_path / "file.safetensors"), "architecture": str(configs)}
            save_single_file(model, tmp_path / "file.safetensors", torch.float32, {})
        del model
    target = {"_target_": "sdft.models.loading.load_stable_diffusion"}
    command = [sys.executable, "-c", MEASUREMENT, json.dumps(target | node)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    assert all(float(process.communicate(timeout=200)[0].split()[-1]) <= 1.2 for process in processes)

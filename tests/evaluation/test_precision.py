"""In bf16, samples in training, by evaluate and by generate are the same images."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from sdft.apps.load_model import open_model
from sdft.data.prior_preservation import PriorPreservation
from sdft.evaluation.variant_images import generate_variant_images
from sdft.evaluation.variants import build_run_variants
from sdft.lora.scaling import load_adapters
from sdft.methods.lora import LoRA
from sdft.models.image_cache import collect_image_settings, format_folder_name
from sdft.models.precision import set_precision
from sdft.models.sampling import Sampling
from sdft.runs.hashing import hash_weights
from sdft.runs.run_config import read_run_config
from sdft.training.inputs import RunInputs

PROMPTS = ["a handwritten two", "a handwritten seven"]


def read_pixels(files) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "sft", "textual_inversion"])
def test_bf16_images_are_those_of_the_training(run, method):
    prompts = [f"{text} <mine>" for text in PROMPTS] if method == "textual_inversion" else PROMPTS
    options = ["rank=2", "alpha=2"] if method == "lora" else []
    options += [f"method={method}", "steps=1", "precision=bf16", "lr=0.05", "data.per_digit=1", f"prompts={prompts}"]
    module, folder = run(*options)
    expected = {step: read_pixels(sorted((folder / "samples").glob(f"*{step}/*.png"))) for step in (0, 1)}
    cfg, sampling = read_run_config(folder), Sampling(2, 3.0, batch_size=20)
    assert not np.array_equal(expected[0], expected[1])
    variants = build_run_variants(folder, module.method, [1.0], None, cfg.seed)
    groups = [SimpleNamespace(name="prompts", prompts=prompts)]
    for step, (_, files) in enumerate(generate_variant_images(folder, cfg, variants, groups, sampling, "cpu")):
        if step == 0 and method == "textual_inversion":
            continue  # the base lacks the word
        assert np.array_equal(read_pixels(files["prompts"]), expected[step])
        request = {"run": str(folder), "precision": cfg.precision, "accelerator": "cpu"}
        model = open_model(OmegaConf.create(request), base_only=step == 0).model
        assert np.array_equal([np.asarray(image) for image in sampling(model, prompts, 32)], expected[step])


def test_a_saved_adapter_gives_the_bf16_images_of_the_trained_model(tiny, tmp_path):
    model, method = tiny(), LoRA(2, 2.0)
    method.prepare(model)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.data.normal_(std=0.1)
    method.save(model, tmp_path, "lora")
    set_precision(model, torch.bfloat16)
    loaded = tiny()
    load_adapters(loaded, [tmp_path])
    set_precision(loaded, torch.bfloat16)
    for image, other in zip(*(Sampling(2, 3.0)(one, PROMPTS, 32) for one in (model, loaded)), strict=True):
        assert np.array_equal(image, other)


def test_only_the_autoencoder_stays_in_fp32(tiny):
    model = tiny()
    LoRA(2, 2.0).prepare(model)
    set_precision(model, torch.bfloat16)
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    assert {d for n, d in dtypes.items() if n.startswith("vae.")} == {torch.float32}
    assert {d for n, d in dtypes.items() if not n.startswith("vae.")} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_class_images_have_the_precision_of_samples(tiny, tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    model, sampling = tiny(), Sampling(1, 1.0)
    inputs = RunInputs(model, None, None, [], 1, None, None, 0, None, {})
    parts = {"prior": PriorPreservation("a three", images=1), "sampling": sampling}
    parts["precision"] = SimpleNamespace(dtype=dtype)
    source = inputs.load_class_images(OmegaConf.create({"resolution": 32}), parts, torch.device("cpu"))
    assert hash_weights(model) == hash_weights(tiny())
    set_precision(model, dtype)
    (expected,) = sampling(model, ["a three"], 32)
    assert np.array_equal(np.asarray(source[0].image), np.asarray(expected))
    settings = {"prompt": "a three", "seed": 0, **collect_image_settings(model, sampling, 32)}
    assert Path(source.source.files[0]).parent.name == format_folder_name("a three", settings)

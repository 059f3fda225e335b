"""Every recipe composes with the command in its first line and trains on data of its format."""

import re
import shlex

import pytest
from conftest import ROOT, save_images
from test_config import compose_checked_config

RECIPES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
DIGITS = ("digits_base", "digits_base_xl", "digits_lora", "digits_subject", "digits_lcm")


def read_command(recipe) -> list[str]:
    """The overrides of the command in the first lines of the file."""
    header = re.match(r"# @package _global_\n# python train.py (.*)\n", recipe.read_text())
    assert header, recipe
    return shlex.split(header[1])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_command_in_the_first_lines_composes(recipe):
    overrides = read_command(recipe)
    assert overrides[0] == f"experiment={recipe.stem}"
    assert compose_checked_config(*overrides).name == recipe.stem


@pytest.fixture
def image_folder(tmp_path):
    """Six captioned images."""
    from sdft.data.digits import Digits

    return save_images(Digits(per_digit=2), tmp_path / "images", 6, captions=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
@pytest.mark.slow
def test_the_recipe_trains_two_steps_on_the_tiny_model(run, image_folder, tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    overrides = [override for override in read_command(recipe) if not override.startswith("data.path=")]
    overrides += ["model=tiny", "model.name=tiny-sd", "resolution=32", "precision=fp32", "strategy=auto", "devices=1"]
    overrides += ["steps=2", "warmup=0", "sampling.images=1", "cache=off"]
    overrides += ["offload_blocks=0"] if recipe.stem.endswith("gb") else []  # on a CPU
    overrides += [] if recipe.stem in DIGITS else [f"data.path={image_folder}"]
    if "dream" in recipe.stem or "subject" in recipe.stem:
        overrides.append("num_class_images=2")
    module, folder = run(*overrides)
    assert (folder / module.method.output_kind).is_dir() and module.trainer.global_step == 2


PUBLISHED_OPTIONS = {
    "homework_faces": {"seed": 1126, "batch_size": 2, "rank": 32, "alpha": 16, "lr": 1e-4, "snr_gamma": 5, "warmup": 100},
    "dog_lora": {"resolution": 256, "flip": True, "rank": 4, "alpha": 4, "lr": 1e-4, "batch_size": 1, "epochs": 100},
    "dog_sft": {"resolution": 256, "lr": 1e-4, "batch_size": 1, "epochs": 100},
    "dog_dreambooth": {"num_class_images": 45, "epochs": 20, "instance_prompt": "a sks dog", "class_prompt": "a dog"},
    "dreambooth_paper": {"steps": 1000, "num_class_images": 1000, "lr": 5e-6},
    "captions_sft": {"steps": 15000, "gradient_accumulation_steps": 4, "batch_size": 1, "lr": 1e-5,
                     "max_grad_norm": 1, "gradient_checkpointing": True},
    "captions_sft_4gpu": {"steps": 4000, "devices": 4, "lr": 1e-5},
    "captions_lora": {"seed": 1337, "steps": 15000, "gradient_accumulation_steps": 4, "rank": 4, "save_every": 500},
    "single_image": {"epochs": 200, "rank": 8, "noise_offset": 0.1, "snr_gamma": 0},
    "style": {"epochs": 20, "rank": 8, "noise_offset": 0.1, "snr_gamma": 0, "crop": "random"},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_OPTIONS)
def test_options_are_the_published_ones(name):
    recipe = ROOT / "conf" / "experiment" / f"{name}.yaml"
    cfg = compose_checked_config(*read_command(recipe))
    assert {key: cfg[key] for key in PUBLISHED_OPTIONS[name]} == PUBLISHED_OPTIONS[name]
    schedule = {"homework_faces": "cosine_with_restarts", "captions_lora": "cosine"}.get(name, "constant")
    weight_decay = 0.02 if name.startswith("captions") else 0.01
    assert (
        cfg.schedule.shape == schedule
        and cfg.optimizer.betas == [0.9, 0.999]
        and cfg.optimizer.weight_decay == weight_decay
    )
    if name in ("single_image", "style", "captions_lora", "dog_lora", "dog_dreambooth"):
        assert cfg.method.text_encoder is False
    if name == "homework_faces":
        assert cfg.schedule.num_cycles == 3 and cfg.precision.compute_dtype == "bfloat16"
    if name.startswith(("homework", "captions")):
        assert cfg.sampling.steps == 30 and cfg.sampling.guidance_scale == 7.5

"""Every shipped config composes and fits its signatures; what does not fit is named in one line."""

from pathlib import Path

import pytest
from conftest import ROOT, compose_config
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from sdft.config import check_config

GROUPS = {p.parent.name: [] for p in (ROOT / "conf").glob("*/*.yaml")}
for path in sorted((ROOT / "conf").glob("*/*.yaml")):
    GROUPS[path.parent.name].append(path.stem)
CHOICES = [f"{group}={name}" for group, names in GROUPS.items() for name in names if group != "experiment"]
NEEDS = {
    "data=folder": ["data.path=photos"],
    "data=hub": ["data.name=somebody/something"],
    "data=shards": ["data.path=shards"],
    "data=dreambooth": ["data.path=photos", "+instance_prompt=a sks dog"],
    "prior=class_images": ["instance_prompt=a sks dog", "class_prompt=a dog"],
}
NEEDS["model=none"] = ["data.path=photos"]
NEEDS |= {
    f"method={name}": ["data.path=photos", *NEEDS["prior=class_images"]] for name in ("dreambooth", "dreambooth_lora")
}


def checked(*overrides, config="train"):
    cfg = compose_config(*overrides, "hydra.runtime.output_dir=here", config=config)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        cfg.pop("hydra")
    check_config(cfg)
    return cfg


@pytest.mark.parametrize("choice", CHOICES)
def test_every_shipped_config_composes_and_fits(choice):
    checked(choice, *NEEDS.get(choice, []), config="sweep" if choice.startswith("launcher=") else "train")


def test_a_dreambooth_run_names_all_that_it_waits_for():
    with pytest.raises(ValueError, match="please set class_prompt=…, data.path=…, instance_prompt=…"):
        checked("method=dreambooth")


def test_an_optimizer_that_is_not_installed_says_what_to_install():
    with pytest.raises(ValueError, match="optimizer: lion_pytorch.Lion needs a package .*: pip install lion_pytorch"):
        checked("optimizer._target_=lion_pytorch.Lion")


@pytest.mark.parametrize("metrics", GROUPS["metrics"])
def test_evaluation_composes_with_every_judge(metrics):
    checked(f"metrics={metrics}", config="evaluate")


def test_rank_is_a_word_of_its_own_and_alpha_follows_it():
    cfg = checked("method=lora", "rank=32")
    assert (cfg.method.rank, cfg.method.alpha) == (32, 32)
    assert checked("rank=32", "alpha=16").method.alpha == 16


def test_text_lr_follows_lr():
    assert checked("data=folder", "data.path=x", "lr=3e-4").training.text_encoder_lr == 3e-4
    assert checked("lr=3e-4", "text_encoder_lr=1e-5").training.text_encoder_lr == 1e-5


def test_the_model_brings_its_resolution_and_the_command_line_wins():
    assert checked().resolution == 32
    assert checked("model=sd15").resolution == 512
    assert checked("model=sd21").resolution == 768
    assert checked("model=sd15", "resolution=128").dataset.resolution == 128


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rank=abc"], r"method.rank=abc: LoRA takes a whole number"),
        (["rank=1.5"], r"method.rank=1.5: LoRA takes a whole number"),
        (["alpha=abc"], r"method.alpha=abc: LoRA takes a number"),
        (["method.alpha=abc"], r"method.alpha=abc: LoRA takes a number"),
        (["caption_dropout=abc"], r"caption_dropout=abc: DataSettings takes a number"),
        (["dataset.dropout=abc"], r"dataset.dropout=abc: DataSettings takes a number"),
        (["+method.foo=1"], r"method.foo=1: LoRA takes rank, alpha, text_encoder"),
        (["lr=fast"], r"lr=fast: .* takes a number"),
        (["+training.nope=1"], r"training.nope=1: TrainingSettings takes steps"),
        (["method.unet_targets=to_q"], r"method.unet_targets=to_q: LoRA takes a list of text"),
        (["flip=maybe"], r"flip=maybe: DataSettings takes true or false"),
        (["data=folder"], r"please set data.path=…"),
        (["+optimizer.momentum=0.9"], r"optimizer.momentum=0.9: AdamW takes"),
    ],
)
def test_what_does_not_fit_a_signature_is_named(overrides, told):
    with pytest.raises(ValueError, match=told):
        checked(*overrides)


def test_the_data_words_win_over_the_objectives():
    assert checked().objective.noise_offset == 0.1
    assert checked("data=folder", "data.path=x").objective.noise_offset == 0.0
    assert checked("noise_offset=0.05").objective.noise_offset == 0.05


def test_every_word_is_used():
    """A word at the top that no node reads would be an option without effect."""
    plain = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "train.yaml"))
    texts = "".join(p.read_text() for p in Path(ROOT, "conf").rglob("*.yaml")) + "".join(
        p.read_text() for p in (ROOT / "sdft").glob("*.py")
    )
    for word, value in plain.items():
        if not hasattr(value, "items") and word != "defaults":
            assert f"${{{word}}}" in texts or f"cfg.{word}" in texts, word


def test_every_group_of_the_design_is_there():
    assert set(GROUPS) >= {
        "model",
        "method",
        "data",
        "optimizer",
        "schedule",
        "precision",
        "strategy",
        "logger",
        "metrics",
    }

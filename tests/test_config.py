"""Every shipped config composes and matches its signatures; errors name the key."""

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
REQUIRED_OVERRIDES = {
    "data=folder": ["data.path=photos"],
    "data=hub": ["data.name=somebody/something"],
    "data=shards": ["data.path=shards"],
    "data=dreambooth": ["data.path=photos", "+instance_prompt=a sks dog"],
    "prior=class_images": ["instance_prompt=a sks dog", "class_prompt=a dog"],
}
REQUIRED_OVERRIDES["model=none"] = ["data.path=photos"]
REQUIRED_OVERRIDES |= {
    f"method={name}": ["data.path=photos", *REQUIRED_OVERRIDES["prior=class_images"]]
    for name in ("dreambooth", "dreambooth_lora")
}


def compose_checked_config(*overrides, config="train"):
    cfg = compose_config(*overrides, "hydra.runtime.output_dir=here", config=config)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        cfg.pop("hydra")
    check_config(cfg)
    return cfg


@pytest.mark.parametrize("choice", CHOICES)
def test_every_shipped_config_composes_and_matches_its_signatures(choice):
    compose_checked_config(
        choice, *REQUIRED_OVERRIDES.get(choice, []), config="sweep" if choice.startswith("launcher=") else "train"
    )


def test_all_missing_options_are_named():
    with pytest.raises(ValueError, match="class_prompt=…, data.path=…, instance_prompt=…"):
        compose_checked_config("method=dreambooth")


def test_an_optimizer_that_is_not_installed_names_its_package():
    with pytest.raises(ValueError, match="optimizer: lion_pytorch.Lion .*pip install lion_pytorch"):
        compose_checked_config("optimizer._target_=lion_pytorch.Lion")


@pytest.mark.parametrize("metrics", GROUPS["metrics"])
def test_evaluation_composes_with_every_metrics_config(metrics):
    compose_checked_config(f"metrics={metrics}", config="evaluate")


def test_rank_is_a_top_level_option_and_alpha_follows_it():
    cfg = compose_checked_config("method=lora", "rank=32")
    assert (cfg.method.rank, cfg.method.alpha) == (32, 32)
    assert compose_checked_config("rank=32", "alpha=16").method.alpha == 16


def test_text_lr_follows_lr():
    assert compose_checked_config("data=folder", "data.path=x", "lr=3e-4").training.text_encoder_lr == 3e-4
    assert compose_checked_config("lr=3e-4", "text_encoder_lr=1e-5").training.text_encoder_lr == 1e-5


def test_part_lr_is_set_on_the_command_line_and_checked():
    assert compose_checked_config("part_lr.clip_l=5e-6").training.part_lr == {
        "unet": None,
        "clip_l": 5e-6,
        "clip_g": None,
    }
    with pytest.raises(ValueError, match="part_lr"):
        compose_checked_config("part_lr.clip_l=high")


def test_the_model_sets_the_resolution_and_the_command_line_overrides_it():
    assert compose_checked_config().resolution == 32
    assert compose_checked_config("model=sd15").resolution == 512
    assert compose_checked_config("model=sd21").resolution == 768
    assert compose_checked_config("model=sd15", "resolution=128").dataset.resolution == 128


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rank=abc"], r"method.rank=abc: LoRA .*integer"),
        (["rank=1.5"], r"method.rank=1.5: LoRA .*integer"),
        (["alpha=abc"], r"method.alpha=abc: LoRA .*number"),
        (["method.alpha=abc"], r"method.alpha=abc: LoRA .*number"),
        (["caption_dropout=abc"], r"^caption_dropout=abc: DataSettings .*number"),
        (["dataset.dropout=abc"], r"dataset.dropout=abc: DataSettings .*number"),
        (["+method.foo=1"], r"method.foo=1: LoRA .*rank, alpha, text_encoder"),
        (["lr=fast"], r"lr=fast: .*number"),
        (["+training.nope=1"], r"training.nope=1: TrainingSettings .*steps"),
        (["++training={1:2}"], r"training.1=2: TrainingSettings .*steps"),
        (["method.unet_targets=to_q"], r"method.unet_targets=to_q: LoRA .*list of text"),
        (["flip=maybe"], r"flip=maybe: DataSettings .*true or false"),
        (["data=folder"], r"data.path=…"),
        (["+optimizer.momentum=0.9"], r"optimizer.momentum=0.9: AdamW "),
    ],
)
def test_arguments_that_do_not_match_a_signature_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        compose_checked_config(*overrides)


def test_options_of_the_dataset_override_those_of_the_objective():
    assert compose_checked_config().objective.noise_offset == 0.1
    assert compose_checked_config("data=folder", "data.path=x").objective.noise_offset == 0.0
    assert compose_checked_config("noise_offset=0.05").objective.noise_offset == 0.05


def test_every_top_level_option_is_used():
    """Each option is read by a config node or by the code."""
    options = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "train.yaml"))
    texts = "".join(p.read_text() for p in Path(ROOT, "conf").rglob("*.yaml")) + "".join(
        p.read_text() for p in (ROOT / "sdft").rglob("*.py")
    )
    for name, value in options.items():
        if not hasattr(value, "items") and name != "defaults":
            assert f"${{{name}}}" in texts or f"cfg.{name}" in texts or f'cfg.get("{name}"' in texts, name


def test_every_config_group_exists():
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

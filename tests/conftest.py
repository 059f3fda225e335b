"""What tests share: the tiny model, real photographs, and a whole run in this process."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).parent.parent

import pytest  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig, open_dict  # noqa: E402

QUICK = [
    "logger=none",
    "metrics=none",
    "sampling.steps=2",
    "batch_size=2",
    "log_every=1",
    "validate_every=0",
    "model.weights=random",
    "accelerator=cpu",
]


@pytest.fixture
def tiny():
    """A function that builds tiny-sd, by default with random weights, always the same ones."""
    from sdft.loading import load

    def build(seed: int = 0, **options):
        torch.manual_seed(seed)
        return load("tiny-sd", **{"weights": "random"} | options)

    return build


def composed(*overrides: str, config: str = "train") -> DictConfig:
    """The real configuration, as the command line would compose it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(config, list(overrides), return_hydra_config=True)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that trains in a folder of its own, in this process, and returns (module, folder)."""
    monkeypatch.chdir(tmp_path)
    from sdft.config import check
    from sdft.training import train

    def start(*overrides: str, name: str = "run"):
        folder = tmp_path / name
        (folder / ".hydra").mkdir(parents=True)
        cfg = composed(*QUICK, *overrides, f"hydra.runtime.output_dir={folder}")
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
        check(cfg)
        return train(cfg), folder

    return start


def scores_of(folder: Path, group: str = "prompts") -> dict[str, dict[str, float]]:
    """The values of a run's evaluation by state and name."""
    states = json.loads((folder / "evaluation" / "scores.json").read_text())["states"]
    return {state["label"]: {name: s["value"] for name, s in state["scores"][group].items()} for state in states}


def save_pictures(source, folder: Path, count: int, captions: bool = False) -> Path:
    """The first pictures of a source as files, with their captions beside them on request."""
    folder.mkdir()
    for index in range(count):
        source[index].image.save(folder / f"{index}.png")
        if captions:
            (folder / f"{index}.txt").write_text(source.captions()[index])
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Six real photographs with captions in `.txt` files."""
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photographs")
    china, flower = load_sample_images().images
    pictures = {
        "astronaut": data.astronaut(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "china": china,
        "flower": flower,
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text(f"a photo of a {name}\n")
    return folder

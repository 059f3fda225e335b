"""Shared fixtures: the tiny model, real photographs, and training runs in this process."""

import csv
import json
import os
import signal
import sys
from contextlib import chdir, contextmanager
from functools import cache, partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).parent.parent

import pytest  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import DictConfig, open_dict  # noqa: E402

for name, default in {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}.items():
    if hasattr(
        signal, name
    ):  # a shell in the background, or nohup, ignores them, also for the programs that tests start
        signal.signal(getattr(signal, name), default)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # one core per test process


def pytest_collection_modifyitems(items: list) -> None:
    """Put the longest tests first, so that parallel workers end together."""
    items.sort(key=lambda item: item.path.name not in ("test_demos.py", "test_distributed.py"))


QUICK_OVERRIDES = [
    "logger=none",
    "metrics=none",
    "sampling.steps=2",
    "batch_size=2",
    "log_every=1",
    "validate_every=0",
    "model.weights=random",
    "accelerator=cpu",
]


@pytest.fixture(scope="session")
def tiny():
    """A function that builds tiny-sd, by default with the same random weights every time."""
    from sdft.models.loading import load_stable_diffusion

    def build(seed: int = 0, **options):
        torch.manual_seed(seed)
        return load_stable_diffusion("tiny-sd", **{"weights": "random"} | options)

    return build


@pytest.fixture(scope="session")
def small_model_folder(tmp_path_factory):
    """A function that returns a folder with the configurations of a small sd21 or sdxl."""
    from small_models import SMALL_MODELS, write_small_model

    home = tmp_path_factory.mktemp("small")
    folders = {name: write_small_model(name, home / name) for name in SMALL_MODELS}
    return folders.__getitem__


@pytest.fixture(scope="session")
def small_xl(small_model_folder):
    """A function that builds a small Stable Diffusion XL, with the same random weights every time."""
    from sdft.models.loading import load_stable_diffusion

    def build(seed: int = 0, **options):
        torch.manual_seed(seed)
        return load_stable_diffusion(str(small_model_folder("sdxl")), weights="random", **options)

    return build


def compose_config(*overrides: str, config: str = "train") -> DictConfig:
    """The config that the command line would compose."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(config, list(overrides), return_hydra_config=True)


MEMORY_ESTIMATES = {}
# options that select the code of a step
MEMORY_RELEVANT = """
    model method objective experiment precision frozen_dtype loss smooth_diffusion_weight gradient_checkpointing compile
    cache optimizer strategy prompt_chunks fused_backward
"""


@contextmanager
def estimate_memory_once(overrides: tuple[str, ...]):
    """Of runs whose steps run the same code, estimate the memory of the first: it takes as long as ten steps."""
    from sdft.training import run_summary

    estimate = run_summary.estimate_memory
    relevant = MEMORY_RELEVANT.split()
    key = frozenset(
        override for override in overrides if override.lstrip("+").replace(".", "=").split("=")[0] in relevant
    )

    def estimate_once(module, step):
        if key not in MEMORY_ESTIMATES:
            MEMORY_ESTIMATES[key] = estimate(module, step)
        return MEMORY_ESTIMATES[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_summary, "estimate_memory", estimate_once)
        yield


def run_training(home: Path, *overrides: str, name: str = "run"):
    """Train in the folder `home/name`, with `home` as the working directory; return (module, folder)."""
    from sdft.config import check_config
    from sdft.runs.invocation import Invocation
    from sdft.training.training_run import train

    folder = home / name
    (folder / ".hydra").mkdir(parents=True, exist_ok=f"resume={folder}" in overrides)
    cfg = compose_config(*QUICK_OVERRIDES, *overrides, f"hydra.runtime.output_dir={folder}")
    hydra_config = cfg.hydra
    with open_dict(cfg):
        cfg.pop("hydra")
    check_config(cfg)
    invocation = Invocation(
        folder, overrides=tuple(hydra_config.overrides.task), choices=dict(hydra_config.runtime.choices)
    )
    with estimate_memory_once(overrides):
        return train(cfg, invocation).module, folder


def read_metric_rows(folder: Path) -> list[dict]:
    """The rows of `metrics.csv` with a training loss."""
    with open(folder / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that trains in a temporary folder, in this process, and returns (module, folder)."""
    monkeypatch.chdir(tmp_path)
    return partial(run_training, tmp_path)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory):
    """Like `run`, but equal overrides train once per test file, whose tests must not modify the result."""
    home = tmp_path_factory.mktemp("shared")

    @cache
    def start(*overrides: str):
        with chdir(home):
            return run_training(home, *overrides, name=f"run{len(list(home.glob('run*')))}")

    return start


def read_scores(folder: Path, group: str = "prompts") -> dict[str, dict[str, float]]:
    """Evaluation scores of a run, by state and metric."""
    states = json.loads((folder / "evaluation" / "scores.json").read_text())["states"]
    return {state["label"]: {name: s["value"] for name, s in state["scores"][group].items()} for state in states}


def save_images(source, folder: Path, count: int, captions: bool = False) -> Path:
    """Save the first `count` images of a source, optionally with caption files."""
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
    images = {
        "astronaut": data.astronaut(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "china": china,
        "flower": flower,
    }
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text(f"a photo of a {name}\n")
    return folder


FAKE_TRAIN_SCRIPT = """
import json, os, pathlib, sys, time
options = dict(override.split('=', 1) for override in sys.argv[1:] if '=' in override)
folder = pathlib.Path(options.pop('hydra.run.dir'))
with open('ran.txt', 'a') as file:
    print(options.get('rank'), options.get('seed'), os.environ.get('OMP_NUM_THREADS'), file=file, flush=True)
time.sleep(float(os.environ.get('NAP', 0)))
if options.get('rank') == os.environ.get('BAD'):
    sys.exit(3)
rank, seed = int(options.get('rank', 8)), int(options.get('seed', 0))
facts = {'format': 1, 'trainable': {'unet': 5 * rank},
         'seconds': 2.0, 'seconds_per_step': 0.5, 'last': {'memory_gb': 1.0}, 'result_mb': 3.0,
         'validation_loss': [2.0, 1.0 / rank], 'device': 'cpu', 'state': 'finished', 'command': ['train.py', *sys.argv[1:]],
         'options': {'rank': rank, 'seed': seed, 'method': 'lora'}}
(folder / 'run.json').write_text(json.dumps(facts))
"""


@pytest.fixture
def fake_train_script(tmp_path, monkeypatch):
    """Work in a folder whose train.py only records its options; returns a function that lists them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(FAKE_TRAIN_SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    return lambda: sorted((tmp_path / "ran.txt").read_text().split("\n")[:-1])

"""Every command of the README and the docs runs: on the tiny model, photographs of the test libraries, and few steps."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT
from small_models import write_small_model
from test_readme import PAGES

pytestmark = pytest.mark.soak
COMMANDS = re.findall(r"`((?:python (?:train|evaluate)\.py|sdft \w+)(?: [^\n`…]*)?)`", PAGES)
NOT_AVAILABLE = {  # option -> what it needs
    "data=hub": "the network",
    "metrics=paper": "DINO weights",
    "metrics=faces": "face models",
    "homework_faces": "face models",
    "push=true": "the network",
    "offload": "a GPU",
    "compile=graphs": "a GPU",
    "wandb_report": "a W&B server",
    "sdft gallery": "someone who ends it",
    "launcher.slurm": "SLURM",
    "launcher.address": "a Ray cluster",
}
SMALLER_VALUES = {  # what a command sets itself -> what the test runs
    r"\bmodel=sd21\b": "model=tiny model.prediction_type=v_prediction",
    r"\bmodel=sd1\d\b": "model=tiny",
    r"\bmodel=sdxl\b": "model=sdxl model.name=SMALL_XL model.weights=random",
    r"\bmetrics=clip\b": "metrics=digits",
    r"\bdevices=[2-9]": "devices=2",
    r"\btrials=\d+": "trials=2",
    r"\bsteps=400\b": "steps=4",
    r"\blauncher=submitit": "launcher=submitit launcher.cluster=local launcher.cpus=1 launcher.memory_gb=4",
    r"\bsave_every=200\b": "save_every=1",
}
ADDED_OPTIONS = {
    "train": ["steps=2", "sampling.steps=2", "log_every=1", "resolution=32", "metrics=none", "accelerator=cpu"],
    "evaluate": ["sampling.steps=2", "images=1"],
    "generate": ["steps=2", "images=1"],
    "morph": ["model=tiny", "steps=3", "frames=3", "ddim_steps=4", "resolution=32"],
    "stylize": ["steps=2", "controlnet=none", "resolution=32"],
}


def run_program(home: Path, *arguments: str) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def run_train(home: Path, *overrides: str) -> None:
    run_program(home, str(ROOT / "train.py"), *add_options("train", list(overrides)), "logger=none", *overrides)


@pytest.fixture(scope="module")
def template(tmp_path_factory, photographs):
    """What the commands expect in their working folder: data, a finished run of each kind, a sweep, files."""
    home = tmp_path_factory.mktemp("template")
    shutil.copytree(photographs, home / "PHOTOS")
    (home / "SHARDS").mkdir()
    with tarfile.open(home / "SHARDS" / "0.tar", "w") as shard:
        for file in sorted(photographs.iterdir()):
            shard.add(file, file.name)
    shutil.copy(photographs / "cat.jpg", home / "a.jpg")
    shutil.copy(photographs / "coffee.jpg", home / "b.jpg")
    write_small_model("sdxl", home / "SMALL_XL")
    (home / "prompts.txt").write_text("a handwritten two\na handwritten three\n")
    run_train(home, "method=sft", "name=sft", "hydra.run.dir=outputs/sft/STAMP")
    scored = ["metrics=digits", "protocol.images=1"]
    run_train(home, "hydra.run.dir=multirun/lora/SWEEP/0", "rank=2", *scored)
    run_train(home, "hydra.run.dir=multirun/lora/SWEEP/1", "rank=4", *scored)
    run_train(home, "hydra.run.dir=outputs/lora/STAMP", *scored, "save_every=1", "checkpoints_total_limit=9")
    (adapter,) = (home / "outputs/lora/STAMP/adapter").glob("lora*.safetensors")
    for name in ("FILE", "A", "B"):
        shutil.copy(adapter, home / f"{name}.safetensors")
    run_program(home, "-m", "sdft", "merge", "model=tiny", "to=MODEL.safetensors")
    run_program(home, "-m", "sdft", "generate", *ADDED_OPTIONS["generate"], "folder=outputs/generate/one")
    shutil.copy(
        next((home / "outputs/generate/one").glob("*/*.png"), None)
        or next((home / "outputs/generate/one").glob("*.png")),
        home / "IMAGE.png",
    )
    return home


def interrupt_run(run: Path) -> None:
    """Turn a finished run into one that was stopped after its first step."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"state": "stopped"}))
    shutil.rmtree(run / "adapter")
    shutil.copy(run / "checkpoints/step-000001.ckpt", run / "checkpoints/last.ckpt")
    (run / "checkpoints/step-000002.ckpt").unlink()


def fill_placeholders(command: str) -> str:
    """The command with names of files that exist, the tiny model and small numbers."""
    for pattern, value in SMALLER_VALUES.items():
        command = re.sub(pattern, value, command)
    command = command.replace("outputs/style/STAMP", "outputs/lora/STAMP")
    command = command.replace("[RUN,RUN]", "[outputs/lora/STAMP,multirun/lora/SWEEP/0]").replace(
        "run=SWEEP", "run=multirun/lora/SWEEP"
    )
    command = command.replace("FOLDERS", "outputs/lora/STAMP multirun/lora/SWEEP/0")
    command = command.replace("base=FOLDER tuned=FOLDER", "base=tiny-sd tuned=outputs/sft/STAMP/pipeline")
    command = command.replace("model.name=FOLDER", "model.name=outputs/sft/STAMP/pipeline").replace(
        "to=FOLDER", "to=merged"
    )
    command = re.sub(r"\bFILE\b", "FILE.safetensors", command)
    return command.replace("[A,B]", "[A.safetensors,B.safetensors]")


def add_options(program: str, arguments: list[str]) -> list[str]:
    """Options that make a command small, unless it sets them itself, resumes, or reproduces."""
    if any(argument.startswith(("resume=", "reproduce=")) for argument in arguments):
        return []
    given = {argument.split("=")[0].lstrip("+") for argument in arguments}
    options = [option for option in ADDED_OPTIONS.get(program, []) if option.split("=")[0] not in given]
    needs_metrics = {"evaluate_every", "sweeps", "experiment"} & given
    options = ["metrics=digits" if option == "metrics=none" and needs_metrics else option for option in options]
    return [*options, *(["model=tiny"] if "experiment" in given and "model" not in given else [])]


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_every_command_of_the_readme_runs(command, template, tmp_path):
    for option, reason in NOT_AVAILABLE.items():
        if option in command:
            pytest.skip(f"needs {reason}")
    home = tmp_path / "home"
    shutil.copytree(template, home)
    if "resume=" in command:
        interrupt_run(home / "outputs/lora/STAMP")
    start, *arguments = shlex.split(fill_placeholders(command))
    program = arguments.pop(0).removesuffix(".py")
    prefix = ["-m", "sdft", program] if start == "sdft" else [str(ROOT / f"{program}.py")]
    flags = [argument for argument in arguments if argument == "-m"]  # before the options, as argparse requires
    options = [argument for argument in arguments if argument != "-m"]
    run_program(home, *prefix, *flags, *add_options(program, options), *options)

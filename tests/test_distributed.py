"""Several processes are one with a larger batch: the same weights, the same files, each thing made once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file
from test_launchers import SRUN

pytestmark = pytest.mark.slow
WORDS = ["logger=none", "metrics=none", "sample_every=0", "sampling.steps=2", "data.per_digit=3", "accelerator=cpu"]
WORDS += ["optimizer.eps=1e-3", "validate_every=5"]
ADAPTER = "adapter/pytorch_lora_weights.safetensors"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]


def trained(place: Path, folder: str, *words: str) -> Path:
    command = [sys.executable, str(ROOT / "train.py"), *WORDS, *words, f"hydra.run.dir={place / folder}"]
    subprocess.run(command, cwd=place, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return place / folder


def alike(one: Path, other: Path, file: str) -> bool:
    ours, theirs = load_file(one / file), load_file(other / file)
    return ours.keys() == theirs.keys() and all(
        torch.allclose(ours[key], theirs[key], atol=1e-5, rtol=0) for key in ours
    )


def losses(folder: Path) -> list[float]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().split("\n")[:-1]]
    column = rows[0].index("validation/loss")
    return [float(row[column]) for row in rows[1:] if row[column]]


def test_two_processes_are_one_with_the_double_batch(tmp_path):  # pitfall 13
    words = ["steps=20", "schedule=cosine", "gradient_accumulation_steps=2"]
    one = trained(tmp_path, "one", *words, "batch_size=4")
    two = trained(tmp_path, "two", *words, "batch_size=2", "devices=2", "strategy=ddp")
    assert alike(one, two, ADAPTER) and losses(one) == pytest.approx(losses(two), abs=1e-5) and len(losses(one)) == 5
    assert {p.name for p in one.rglob("*")} == {p.name for p in two.rglob("*")}  # and none of a second process


def test_sharded_weights_end_in_the_pipeline_of_one_process(tmp_path):
    words = [
        "method=sft",
        "method.text_encoder=true",
        "steps=4",
        "ema=0.9",
        "save_every=2",
        "checkpoints_total_limit=9",
    ]
    one = trained(tmp_path, "one", *words, "batch_size=4")
    two = trained(tmp_path, "two", *words, "batch_size=2", "devices=2", "strategy=fsdp")
    for file in (
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ):
        assert alike(one / "pipeline", two / "pipeline", file)
    for file in ("model_index.json", "unet/config.json", "text_encoder/config.json"):
        assert (one / "pipeline" / file).read_text() == (two / "pipeline" / file).read_text()
    assert {p.relative_to(one) for p in one.rglob("*")} == {p.relative_to(two) for p in two.rglob("*")}
    half = f"resume={two / 'checkpoints' / 'step-000002.ckpt'}"
    again = trained(tmp_path, "again", *words, "batch_size=2", "devices=2", "strategy=fsdp", half)
    assert alike(two / "pipeline", again / "pipeline", "unet/diffusion_pytorch_model.safetensors")
    alone = trained(tmp_path, "alone", *words, "batch_size=4", half)  # what two wrote, one goes on from
    assert alike(two / "pipeline", alone / "pipeline", "unet/diffusion_pytorch_model.safetensors")


def test_pictures_of_the_class_caches_and_scores_are_made_once_by_all(tmp_path):
    words = [
        "experiment=digits_subject",
        "steps=2",
        "num_class_images=6",
        "metrics=digits",
        "protocol.images=2",
        "sampling.batch_size=2",
    ]
    words += ["batch_size=2"]
    found = {}
    for name, more in {"one": [], "two": ["devices=2", "strategy=ddp", "batch_size=1"]}.items():
        place = tmp_path / name
        place.mkdir()
        folder = trained(place, "run", *words, *more)
        (made,) = place.glob("outputs/class_images/*")
        pictures = {p.name: np.asarray(Image.open(p)).astype(int) for p in made.glob("*.png")}
        assert set(json.loads((made / "manifest.json").read_text())["files"]) == set(pictures)
        cached = [key for p in place.glob("outputs/cache/latents/*/*.safetensors") for key in load_file(p)]
        assert len(cached) == len(set(cached))  # no latent twice
        states = json.loads((folder / "evaluation" / "scores.json").read_text())["states"]
        found[name] = pictures, len(cached), states[1]["scores"]["prompts"]
    (ours, one, scores), (theirs, two, others) = found.values()
    assert len(ours) == 6 and ours.keys() == theirs.keys() and one == two
    assert all(abs(ours[name] - theirs[name]).max() <= 2 for name in ours)  # other batches, sums in another order
    assert all(scores[n]["value"] == pytest.approx(others[n]["value"], abs=0.02) for n in ("CLIP-I", "CLIP-T"))


@pytest.mark.parametrize("search", [False, True], ids=["list", "search"])
def test_each_job_of_a_sweep_is_two_processes_of_the_same_words(tmp_path, search):
    """Hydra's own multirun with Lightning's launcher trains other words on the second rank, and says nothing."""
    tried = ["rank=tag(log,int(interval(2,8)))", "trials=2"] if search else ["rank=2,4"]
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        *WORDS,
        "steps=3",
        *tried,
        "batch_size=2",
        "devices=2",
        "strategy=ddp",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600, stdout=subprocess.DEVNULL)
    (sweep,) = tmp_path.glob("multirun/lora/*")
    told = [json.loads((sweep / job / "run.json").read_text())["options"]["rank"] for job in "01"]
    ranks = [{w.shape[0] for k, w in load_file(sweep / job / ADAPTER).items() if "lora_A" in k} for job in "01"]
    assert ranks == [{rank} for rank in told] and (sweep / "compare.html").is_file()
    alone = trained(tmp_path, "one", "steps=3", f"rank={told[1]}", "batch_size=4")
    assert alike(alone, sweep / "1", ADAPTER)


def node(place: Path, port: int, *words: str) -> subprocess.Popen:
    command = [
        *TORCHRUN,
        f"--rdzv-endpoint=localhost:{port}",
        "--local-addr=localhost",
        str(ROOT / "train.py"),
        *WORDS,
        *words,
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(
        [*command, "num_nodes=2"], cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **quiet
    )


def test_two_machines_train_and_when_one_dies_the_other_ends_and_a_restart_goes_on(tmp_path):
    words = [
        "steps=40",
        "strategy=ddp",
        "batch_size=2",
        "save_every=2",
        "checkpoints_total_limit=99",
        "validate_every=0",
    ]
    both = [node(tmp_path, 29617, *words) for _ in range(2)]
    deadline = time.monotonic() + 240
    while not (found := sorted(tmp_path.glob("outputs/lora/*/checkpoints/step-*.ckpt"))):
        assert time.monotonic() < deadline and all(one.poll() is None for one in both)
        time.sleep(0.1)
    died = time.monotonic()
    os.killpg(both[1].pid, signal.SIGKILL)
    assert both[0].wait(60) != 0 and time.monotonic() - died < 60
    folder = found[0].parent.parent
    assert not (folder / "adapter").exists() and not list(tmp_path.glob("outputs/lora/*/.hydra/../run-1*"))
    again = [node(tmp_path, 29618, "validate_every=0", "resume=last") for _ in range(2)]
    assert [one.wait(400) for one in again] == [0, 0]
    assert list(tmp_path.glob("outputs/lora/*")) == [folder]  # the second machine leaves none of its own
    assert [part["changed"] for part in json.loads((folder / "run.json").read_text())["resumed"]] == [{}]
    alone = trained(tmp_path, "alone", "steps=40", "batch_size=4", "validate_every=0")
    assert alike(alone, folder, ADAPTER)


def test_srun_starts_the_same_command(tmp_path):
    script = tmp_path / "srun"
    script.write_text(SRUN.format(python=sys.executable))
    words = ["steps=3", "batch_size=2", "devices=2", "strategy=ddp"]
    told = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_NODELIST": "localhost",
        "SLURM_JOB_NODELIST": "localhost",
    }
    command = [sys.executable, str(script), sys.executable, str(ROOT / "train.py"), *WORDS, *words]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=400, env=os.environ | told, stdout=subprocess.DEVNULL)
    (two,) = tmp_path.glob("outputs/lora/*")
    assert alike(trained(tmp_path, "one", "steps=3", "batch_size=4"), two, ADAPTER)


def test_a_process_that_dies_ends_the_others_and_the_run(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *WORDS,
        "steps=100",
        "batch_size=2",
        "devices=2",
        "strategy=ddp",
        "save_every=1",
    ]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("outputs/lora/*/checkpoints/step-*.ckpt")):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.1)
    workers = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[1]), signal.SIGKILL)
    assert first.wait(60) == 137 and "error: process 1 of 2 was killed (SIGKILL)" in first.stderr.read()
    assert not any(Path(f"/proc/{number}").exists() for number in workers)
    (folder,) = tmp_path.glob("outputs/lora/*")
    again = [*command[:2], "resume=last"]
    subprocess.run(again, cwd=tmp_path, check=True, timeout=600, stdout=subprocess.DEVNULL)
    whole = trained(tmp_path, "whole", *command[2 + len(WORDS) :])
    ours, theirs = load_file(folder / ADAPTER), load_file(whole / ADAPTER)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_several_processes_cannot_do_is_refused_in_one_line(tmp_path):
    for words, told in (
        (["num_nodes=2"], "num_nodes=2: start it on every machine, with torchrun --nnodes=2"),
        (["strategy=fsdp", "devices=2"], "strategy=fsdp: spreads weights that learn, and an adapter's are few"),
        (["devices=2", "data.digits=[]"], "data.digits=[]"),
    ):
        command = [sys.executable, str(ROOT / "train.py"), *WORDS, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {told}") and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("outputs/lora/*"))

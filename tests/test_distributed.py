"""Several processes equal one with a larger batch: the same weights and files, each written once."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, Popen, run

import numpy as np
import pytest
import torch
from conftest import ROOT
from forked import ForkedProgram, run_forked, start_forked_ranks, wait_for_success
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
OVERRIDES = ["logger=none", "metrics=none", "sample_every=0", "sampling.steps=2", "data.per_digit=3", "accelerator=cpu"]
OVERRIDES += ["optimizer.eps=1e-3", "validate_every=5"]
ADAPTER = "adapter/pytorch_lora_weights.safetensors"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]


def train(home: Path, folder: str, *overrides: str) -> Path:
    """Train in one process, or with `devices=2` in two that torchrun would have started."""
    arguments = [*OVERRIDES, *overrides, f"hydra.run.dir={home / folder}"]
    start = start_forked_ranks if "devices=2" in overrides else lambda *args, cwd: [ForkedProgram(*args, cwd=cwd)]
    wait_for_success(start(*arguments, cwd=home))
    return home / folder


def weights_are_close(one: Path, other: Path, file: str) -> bool:
    a, b = load_file(one / file), load_file(other / file)
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-5, rtol=0) for key in a)


def read_validation_losses(folder: Path) -> list[float]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().split("\n")[:-1]]
    column = rows[0].index("validation/loss")
    return [float(row[column]) for row in rows[1:] if row[column]]


def test_two_processes_equal_one_with_the_double_batch_size(tmp_path):  # pitfall 13
    overrides = ["steps=20", "schedule=cosine", "gradient_accumulation_steps=2"]
    one = train(tmp_path, "one", *overrides, "batch_size=4")
    two = train(tmp_path, "two", *overrides, "batch_size=2", "devices=2", "strategy=ddp")
    assert (
        weights_are_close(one, two, ADAPTER)
        and read_validation_losses(one) == pytest.approx(read_validation_losses(two), abs=1e-5)
        and len(read_validation_losses(one)) == 5
    )
    assert {p.name for p in one.rglob("*")} == {p.name for p in two.rglob("*")}  # rank 1 writes no files


def test_fsdp_writes_the_pipeline_of_one_process(tmp_path):
    overrides = [
        "method=sft",
        "method.text_encoder=true",
        "steps=4",
        "ema=0.9",
        "save_every=2",
        "checkpoints_total_limit=9",
    ]
    one = train(tmp_path, "one", *overrides, "batch_size=4")
    two = train(tmp_path, "two", *overrides, "batch_size=2", "devices=2", "strategy=fsdp")
    for file in (
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ):
        assert weights_are_close(one / "pipeline", two / "pipeline", file)
    for file in ("model_index.json", "unet/config.json", "text_encoder/config.json"):
        assert (one / "pipeline" / file).read_text() == (two / "pipeline" / file).read_text()
    assert {p.relative_to(one) for p in one.rglob("*")} == {p.relative_to(two) for p in two.rglob("*")}
    resume = f"resume={two / 'checkpoints' / 'step-000002.ckpt'}"
    resumed = train(tmp_path, "resumed", *overrides, "batch_size=2", "devices=2", "strategy=fsdp", resume)
    assert weights_are_close(two / "pipeline", resumed / "pipeline", "unet/diffusion_pytorch_model.safetensors")
    single = train(tmp_path, "single", *overrides, "batch_size=4", resume)  # resumes a checkpoint of two ranks
    assert weights_are_close(two / "pipeline", single / "pipeline", "unet/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("strategy", "family"), [("fsdp", "sdxl"), ("ddp", "sdxl"), ("fsdp", "sd21")], ids=["fsdp", "ddp", "fsdp clip_skip"]
)
def test_two_processes_train_text_encoders_as_one_does(tmp_path, small_model_folder, strategy, family):
    overrides = [f"model={family}", f"model.name={small_model_folder(family)}", "model.weights=random", "resolution=32"]
    overrides += ["method=sft", "method.text_encoder=true", "steps=2", "gradient_checkpointing=true", "ema=0.9"]
    overrides += ["model.clip_skip=2"]
    one = train(tmp_path, "one", *overrides, "batch_size=4")
    two = train(tmp_path, "two", *overrides, "batch_size=2", "devices=2", f"strategy={strategy}")
    text_encoders = ["text_encoder/model", "text_encoder_2/model"][: 1 + (family == "sdxl")]
    for part in ("unet/diffusion_pytorch_model", *text_encoders):
        assert weights_are_close(one / "pipeline", two / "pipeline", f"{part}.safetensors"), part
    assert {p.relative_to(one) for p in one.rglob("*")} == {p.relative_to(two) for p in two.rglob("*")}


def test_ranks_share_the_work_on_class_images_caches_and_scores(tmp_path):
    overrides = [
        "experiment=digits_subject",
        "steps=2",
        "num_class_images=6",
        "metrics=digits",
        "protocol.images=2",
        "sampling.batch_size=2",
    ]
    overrides += ["batch_size=2", "evaluate_every=1", "evaluate_images=1", "checkpoint_metric=CLIP-I"]
    results = {}
    for name, more in {"one": [], "two": ["devices=2", "strategy=ddp", "batch_size=1"]}.items():
        home = tmp_path / name
        home.mkdir()
        folder = train(home, "run", *overrides, *more)
        (class_folder,) = home.glob("outputs/class_images/*")
        images = {p.name: np.asarray(Image.open(p)).astype(int) for p in class_folder.glob("*.png")}
        assert set(json.loads((class_folder / "manifest.json").read_text())["files"]) == set(images)
        cached = [key for p in home.glob("outputs/cache/latents/*/*.safetensors") for key in load_file(p)]
        assert len(cached) == len(set(cached))  # each latent once
        states = json.loads((folder / "evaluation" / "scores.json").read_text())["states"]
        results[name] = images, len(cached), states[1]["scores"]["prompts"]
    (images_1, cached_1, scores_1), (images_2, cached_2, scores_2) = results.values()
    assert len(images_1) == 6 and images_1.keys() == images_2.keys() and cached_1 == cached_2
    # other batches sum in another order
    assert all(abs(images_1[name] - images_2[name]).max() <= 2 for name in images_1)
    assert all(scores_1[n]["value"] == pytest.approx(scores_2[n]["value"], abs=0.02) for n in ("CLIP-I", "CLIP-T"))


@pytest.mark.parametrize("search", [False, True], ids=["list", "search"])
def test_each_job_of_a_sweep_runs_two_processes_with_the_same_options(tmp_path, search):
    """Hydra's own multirun with Lightning's launcher silently trains with other options on rank 1."""
    sweep_overrides = ["rank=tag(log,int(interval(2,7)))", "trials=1"] if search else ["rank=2,4"]
    overrides = ["steps=3", *sweep_overrides, "batch_size=2", "devices=2", "strategy=ddp"]
    run_forked("-m", *OVERRIDES, *overrides, cwd=tmp_path)
    (sweep,) = tmp_path.glob("multirun/lora/*")
    jobs = "0" if search else "01"
    job_ranks = [json.loads((sweep / job / "run.json").read_text())["options"]["rank"] for job in jobs]
    ranks = [{w.shape[0] for k, w in load_file(sweep / job / ADAPTER).items() if "lora_A" in k} for job in jobs]
    assert ranks == [{rank} for rank in job_ranks] and (search or (sweep / "compare.html").is_file())
    single = train(tmp_path, "one", "steps=3", f"rank={job_ranks[-1]}", "batch_size=4")
    assert weights_are_close(single, sweep / jobs[-1], ADAPTER)


def start_node(home: Path, port: int, *overrides: str) -> Popen:
    command = [
        *TORCHRUN,
        f"--rdzv-endpoint=localhost:{port}",
        "--local-addr=localhost",
        str(ROOT / "train.py"),
        *OVERRIDES,
        *overrides,
    ]
    options = {"stdout": DEVNULL, "stderr": DEVNULL, "start_new_session": True}
    return Popen([*command, "num_nodes=2"], cwd=home, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


def test_when_one_of_two_machines_dies_the_other_ends_and_a_restart_resumes(tmp_path):
    overrides = [
        "steps=40",
        "strategy=ddp",
        "batch_size=2",
        "save_every=2",
        "checkpoints_total_limit=99",
        "validate_every=0",
    ]
    nodes = [start_node(tmp_path, 29617, *overrides) for _ in range(2)]
    deadline = time.monotonic() + 240
    while not (checkpoints := sorted(tmp_path.glob("outputs/lora/*/checkpoints/step-*.ckpt"))):
        assert time.monotonic() < deadline and all(node.poll() is None for node in nodes)
        time.sleep(0.1)
    killed_at = time.monotonic()
    os.killpg(nodes[1].pid, signal.SIGKILL)
    assert nodes[0].wait(60) != 0 and time.monotonic() - killed_at < 60
    folder = checkpoints[0].parent.parent
    assert not (folder / "adapter").exists() and not list(tmp_path.glob("outputs/lora/*/.hydra/../run-1*"))
    wait_for_success(start_forked_ranks("validate_every=0", "resume=last", "num_nodes=2", cwd=tmp_path, nodes=2))
    assert list(tmp_path.glob("outputs/lora/*")) == [folder]  # the second machine creates no folder
    assert [entry["changed"] for entry in json.loads((folder / "run.json").read_text())["resumed"]] == [{}]
    single = train(tmp_path, "single", "steps=40", "batch_size=4", "validate_every=0")
    assert weights_are_close(single, folder, ADAPTER)


def test_srun_runs_the_same_command(tmp_path):
    variables = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1"}
    variables |= dict.fromkeys(("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"), "2")
    variables |= dict.fromkeys(("SLURM_NODELIST", "SLURM_JOB_NODELIST"), "localhost")
    overrides = [*OVERRIDES, "steps=3", "batch_size=2", "devices=2", "strategy=ddp"]
    tasks = [{"SLURM_PROCID": number, "SLURM_LOCALID": number} for number in "01"]
    wait_for_success([ForkedProgram(*overrides, cwd=tmp_path, **variables, **task) for task in tasks])
    (two,) = tmp_path.glob("outputs/lora/*")
    assert weights_are_close(train(tmp_path, "one", "steps=3", "batch_size=4"), two, ADAPTER)


def test_a_killed_rank_ends_the_run(tmp_path):
    overrides = ["steps=30", "batch_size=2", "devices=2", "strategy=ddp", "save_every=1"]
    launcher = ForkedProgram(*OVERRIDES, *overrides, cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("outputs/lora/*/checkpoints/step-*.ckpt")):
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.1)
    workers = run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[1]), signal.SIGKILL)
    assert launcher.wait(60) == 137 and "error: rank 1 of 2 was killed (SIGKILL)" in launcher.read("err")
    assert not any(Path(f"/proc/{number}").exists() for number in workers)
    (folder,) = tmp_path.glob("outputs/lora/*")
    wait_for_success(start_forked_ranks("resume=last", cwd=tmp_path))
    uninterrupted = train(tmp_path, "uninterrupted", *overrides)
    a, b = load_file(folder / ADAPTER), load_file(uninterrupted / ADAPTER)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_options_that_several_processes_do_not_support_are_named_in_one_line(tmp_path):
    for overrides, message in (
        (["num_nodes=2"], "num_nodes=2: "),
        (["strategy=fsdp", "devices=2"], "strategy=fsdp"),
        (["devices=2", "data.digits=[]"], "data.digits=[]"),
    ):
        done = ForkedProgram(*OVERRIDES, *overrides, cwd=tmp_path).communicate()
        assert done.returncode == 1 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("outputs/lora/*"))

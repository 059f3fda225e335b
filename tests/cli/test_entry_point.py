"""Invalid input on the real command line: one line, a non-zero exit status, no files left; fast start-up."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from conftest import ROOT, read_scores
from forked import ForkedProgram
from PIL import Image

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
ENVIRONMENT |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_program(*arguments: str, cwd, name: str = "train.py", **environment: str):
    command = [sys.executable, "-W", "ignore", str(ROOT / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300)


def run_forked_program(*arguments: str, cwd: Path, name: str = "train.py", **environment: str) -> CompletedProcess:
    """As `run_program`, but in a forked process that has imported the slow libraries."""
    return ForkedProgram(*arguments, cwd=cwd, name=name, CUDA_VISIBLE_DEVICES="", **environment).communicate()


def list_files(folder) -> list:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "outputs/cache/scans" not in path.as_posix())


def get_error(*arguments: str, cwd, name: str = "train.py", run=run_forked_program) -> str:
    """Return the error line of a command that fails without changing any file, except the index of scanned images."""
    before = list_files(cwd)
    done = run(*arguments, cwd=cwd, name=name)
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert list_files(cwd) == before, "files were left"
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["method=lorra"], ["method/lorra", "lora", "sft"]),
        (["rank=0"], ["rank=0: "]),
        (["rank=abc"], ["rank=abc: ", "integer"]),
        (["method=sft", "rank=32"], ["rank=32: ", "method=lora"]),
        (["learning_rate=5e-3"], ["learning_rate=5e-3: ", "use lr=5e-3"]),
        (["+resolutoin=64"], ["resolutoin=64: ", "resolution"]),
        (["--learning_rate", "5e-3"], ["--learning_rate", "lr=…"]),
        (["+method.foo=1"], ["method.foo=1: ", "rank, alpha"]),
        (["data=folder"], ["data.path=…"]),
        (["data=folder", "data.path=nowhere"], ["data.path=nowhere: "]),
        (["method.unet_targets=[to_x]"], ["to_x", "to_q"]),
        (["resolution=30"], ["resolution=30: ", "32"]),
        (["model=sd15", "steps=1"], ["stable-diffusion-v1-5: "]),
        (["precision=fp8"], ["precision/fp8", "bf16"]),
        (["method=dreambooth_lora"], ["class_prompt=…, data.path=…, instance_prompt=…"]),
        (["warmup=900"], ["warmup=900: ", "50 steps"]),
        (["sweeps=seeds", "sweeps=methods"], ["sweeps=seeds sweeps=methods: "]),
        (["hydra.output_subdir=.", "rank=0"], ["hydra.output_subdir=.: "]),
        ([f"name={'n' * 250}"], ["name=nnn", "200 bytes"]),
        (["logger.project=runs/train"], ["logger.project='runs/train': "]),
        ([f"logger.project={'p' * 140}"], ["logger.project=ppp", "128"]),
        ([f"name={'n' * 140}"], ["name=nnn", "128"]),
        ([f"tags=[{'t' * 70}]"], ["tags: ", "64"]),
        (["sweeps=nothing"], ["sweeps=nothing: ", "learning_rate, methods"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_invalid_overrides_are_named_in_one_line(tmp_path, overrides, parts):
    line = get_error(*overrides, cwd=tmp_path)
    assert all(part in line for part in parts), line


def test_a_fresh_process_prints_only_the_error_line(tmp_path):
    assert "warmup=900" in get_error("warmup=900", cwd=tmp_path, run=run_program)


def test_invalid_image_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "data.path=empty: " in get_error("data=folder", "data.path=empty", cwd=tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "a.png")
    assert "a.png" in get_error("data=folder", "data.path=images", cwd=tmp_path)  # has no caption
    (images / "broken.jpg").write_bytes(b"\xff\xd8 no")
    line = get_error("data=folder", "data.path=images", "data.caption=a thing", cwd=tmp_path)
    assert "images/broken.jpg: " in line


def test_a_refused_run_leaves_the_files_of_its_folder(tmp_path):
    (tmp_path / "photographs").mkdir()
    for folder in ("photographs", "photographs/new/run"):
        assert "rank=0" in get_error(f"hydra.run.dir={folder}", "rank=0", cwd=tmp_path)
    (tmp_path / "photographs" / "config.yaml").touch()
    assert "config.yaml" in get_error("hydra.run.dir=photographs", cwd=tmp_path)


def test_a_model_folder_without_a_unet(tmp_path):
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / "model" / part).mkdir(parents=True)
    assert "unet/" in get_error("model.name=model", cwd=tmp_path)


def test_an_unwritable_output_folder(tmp_path):
    (tmp_path / "file").touch()
    line = get_error(f"hydra.run.dir={tmp_path}/file/run", cwd=tmp_path)
    assert "Not a directory" in line and "file/run" in line


def test_evaluate_without_a_run(tmp_path):
    assert "outputs/" in get_error(cwd=tmp_path, name="evaluate.py")
    assert "run=.: not a run folder" in get_error("run=.", cwd=tmp_path, name="evaluate.py")


@pytest.mark.parametrize(
    ("arguments", "library", "factor"),
    [(["--help"], "hydra", 5), (["method=lorra"], "hydra", 5), (["rank=abc"], "torch", 2.5)],
    ids=str,
)
@pytest.mark.slow
def test_start_up_is_fast(tmp_path, arguments, library, factor):
    """Relative to the import of a library at the same time: seconds depend on the load of the machine."""
    seconds = {"program": [], "import": []}
    for _ in range(2):
        start = time.perf_counter()
        run_program(*arguments, cwd=tmp_path)
        middle = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {library}"], cwd=tmp_path, check=True)
        seconds["program"].append(middle - start)
        seconds["import"].append(time.perf_counter() - middle)
    assert min(seconds["program"]) < factor * min(seconds["import"])


def test_help_lists_the_options_and_choices(tmp_path):
    text = run_program("--help", cwd=tmp_path).stdout
    for part in ("rank=8", "steps=", "method=dreambooth", "== data ==", "sd15", "python train.py method=lora rank=32"):
        assert part in text, part


def test_cfg_job_prints_the_full_config(tmp_path):
    text = run_program("--cfg", "job", cwd=tmp_path).stdout
    assert "_target_: sdft.methods.lora.LoRA" in text and "snr_gamma: 5.0" in text


@pytest.mark.slow
def test_hydra_full_error_prints_the_traceback(tmp_path):
    done = run_forked_program("rank=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0 and "Traceback" in done.stderr


@pytest.mark.slow
def test_every_job_of_a_sweep_has_its_own_run_folder(tmp_path):
    quick = ["steps=1", "metrics=none", "sampling.steps=1", "logger=none", "batch_size=1"]
    done = run_forked_program("-m", "rank=1,2", "seed=3", *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "multirun" / "lora").iterdir()
    for job, rank in ((0, 1), (1, 2)):
        record = json.loads((sweep / str(job) / "run.json").read_text())
        assert record["state"] == "finished" and record["trainable"]["unet"] == rank * 66_304 // 8


@pytest.mark.slow
def test_sd15_trains_on_photographs_in_twelve_gigabytes(tmp_path, photographs):
    (tmp_path / "two").mkdir()
    for name in ("cat.jpg", "cat.txt", "rocket.jpg", "rocket.txt"):
        (tmp_path / "two" / name).write_bytes((photographs / name).read_bytes())
    overrides = [
        "model=sd15",
        "model.weights=random",
        "data=folder",
        "data.path=two",
        "resolution=128",
        "steps=2",
        "validate_every=0",
    ]
    code = "import resource, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    code += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    command = [sys.executable, "-c", code, str(ROOT / "train.py"), *overrides, "sampling.steps=1", "prompts=[a cat]"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "unet 1,594,368 + clip_l 589,824 of 1,066,235,307" in done.stdout
    assert float(done.stdout.split("peak")[1]) < 12


@pytest.mark.slow
def test_the_default_run_fits_the_style_and_preserves_the_digits(tmp_path):
    """The claim of the README: digits 5-9, absent from training, classified by tiny-clip among all (style x digit) captions."""
    start = time.perf_counter()
    done = run_forked_program("logger.mode=offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 180
    (folder,) = (tmp_path / "outputs" / "lora").iterdir()
    assert json.loads((folder / "run.json").read_text())["last"]["memory_gb"] < 3
    scores = read_scores(folder)
    assert scores["base"]["style"] <= 0.1 and scores["fine-tuned"]["style"] >= 0.9
    assert scores["fine-tuned"]["digit"] >= 0.9 * scores["base"]["digit"]
    assert run_forked_program("images=1", cwd=tmp_path, name="evaluate.py").stdout.count("%") > 6

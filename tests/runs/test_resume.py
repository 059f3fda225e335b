"""A run that was interrupted and goes on is the run that never was: the same folder, to the bit."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import QUICK_OVERRIDES, ROOT, save_images
from omegaconf import OmegaConf
from safetensors.torch import load_file
from test_loggers import records

from sdft.data.digits import Digits
from sdft.runs.checkpoint_file import read_checkpoint
from sdft.runs.metrics_csv import MetricsCsv
from sdft.runs.resume import diff_configs, load_previous_run, restore_overrides
from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.export import ResultExport
from sdft.training.callbacks.nan_check import NanCheck

FEW = ["data.per_digit=2", "data.digits=[0,1,2]"]
TIMED = ("images_per_second", "memory_gb")


class PowerCut(Exception):
    pass


def cut(monkeypatch, kind, hook: str, step: int) -> None:
    """The run ends without a word when a callback comes to `step`."""
    before = getattr(kind, hook)

    def ends(self, trainer, *more):
        if trainer.global_step == step:
            raise PowerCut
        before(self, trainer, *more)

    monkeypatch.setattr(kind, hook, ends)


def rows(folder) -> list[dict]:
    with open(folder / "metrics.csv", newline="") as file:
        found = [{k: v for k, v in row.items() if not k.endswith(TIMED)} for row in csv.DictReader(file)]
    return [row for row in found if any(value for name, value in row.items() if name != "step")]


def leaves(node) -> list:
    if isinstance(node, dict):
        return [leaf for key in sorted(node, key=str) for leaf in (key, *leaves(node[key]))]
    return [leaf for one in node for leaf in leaves(one)] if isinstance(node, list | tuple) else [node]


def same(one, other) -> None:
    """Everything that is no time: weights, averages, optimizer, schedule, metrics, samples, results."""
    ours, theirs = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (one, other))
    for checkpoint in (ours, theirs):
        training_metrics = checkpoint["callbacks"]["TrainingMetrics"]
        training_metrics["last"] = {k: v for k, v in training_metrics["last"].items() if k not in TIMED}
        for key in ("seconds", "steps", "elapsed"):
            training_metrics.pop(key)
        checkpoint.pop("loops")  # Lightning's own counts; ours is the step
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or a != a
    assert rows(one) == rows(other)
    files = [
        {p.relative_to(folder) for p in folder.rglob("*") if p.suffix in (".png", ".safetensors", ".ckpt")}
        for folder in (one, other)
    ]
    assert files[0] == files[1]
    for name in files[0]:
        if name.suffix == ".safetensors":
            a, b = load_file(one / name), load_file(other / name)
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
        elif name.suffix == ".png" and name.name not in ("data.png", "loss.png"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


SUBJECT = ["instance_prompt=a sks three", "class_prompt=a handwritten three", "num_class_images=2"]
METHODS = {
    "lora": ["schedule=cosine", "ema=0.9", "rank=2", "caption_dropout=0.5", "method.dropout=0.5"],
    "accumulated epochs": [
        "steps=null",
        "epochs=4",
        "batch_size=2",
        "gradient_accumulation_steps=2",
        "rank=2",
        "log_every=4",
    ],
    "sft": ["method=sft", "method.text_encoder=true", "ema=0.9"],
    "pretrain": ["method=pretrain"],
    "textual_inversion": ["method=textual_inversion", "num_vectors=2"],
    "dreambooth": ["method=dreambooth", *SUBJECT],
    "dreambooth_lora": ["method=dreambooth_lora", *SUBJECT, "rank=2"],
    "lcm_lora": [
        "method=lcm_lora",
        "rank=2",
        "ema=0.9",
        "gradient_accumulation_steps=2",
        "smooth_diffusion_weight=0.5",
    ],
}
FAST = ("lora", "accumulated epochs", "lcm_lora")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in METHODS])
def test_interrupted_and_resumed_is_uninterrupted(run, tmp_path, monkeypatch, name):
    given = [
        "steps=6",
        "save_every=2",
        "checkpoints_total_limit=9",
        "sample_every=3",
        "validate_every=3",
        *METHODS[name],
    ]
    if "dreambooth" in name:
        given.append(f"data.path={save_images(Digits('candy', [3], 5), tmp_path / 'subject', 5)}")
    else:
        given += FEW
    _, whole = run(*given, name="whole")
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        cut(patched, NanCheck, "on_train_batch_end", 5)
        run(*given, name="cut")
    folder = whole.parent / "cut"
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"
    run(*given, "workers=1", f"resume={folder}", name="cut")
    same(whole, folder)
    told = json.loads((folder / "run.json").read_text())
    assert told["state"] == "finished"
    assert [(r["step"], r["changed"]) for r in told["resumed"]] == [(4, {})]


@pytest.mark.parametrize(("kind", "hook", "step"), [(EMA, "on_train_batch_end", 1), (ResultExport, "on_train_end", 3)])
def test_a_run_goes_on_from_its_start_and_from_its_last_step(run, monkeypatch, kind, hook, step):
    """Before the first checkpoint there is none; after the last step the result is still to be written."""
    given = [*FEW, "rank=2", "steps=3", "save_every=3", "ema=0.9", "log_every=2", "metrics=digits", "protocol.images=1",
             "evaluate_every=2", "evaluate_images=1", "checkpoint_metric=CLIP-T"]  # fmt: skip
    _, whole = run(*given, name="whole")
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        cut(patched, kind, hook, step)
        run(*given, name="cut")
    folder = whole.parent / "cut"
    assert not (folder / "adapter").exists()
    run(*given, f"resume={folder}", name="cut")
    same(whole, folder)
    ours, theirs = (json.loads((place / "evaluation" / "timeline.json").read_text()) for place in (whole, folder))
    assert ours == theirs
    with pytest.raises(
        ValueError, match=r"resume=.*: already at step 3 of 3; give more steps, and allow_config_change=true"
    ):
        run(*given, f"resume={folder}", name="cut")


def test_other_words_are_shown_and_must_be_confirmed(run, capsys):
    given = [*FEW, "rank=2", "steps=2"]
    _, folder = run(*given)
    resumed = [*given[:-1], "steps=4", "lr=2e-4", f"resume={folder}"]
    with pytest.raises(ValueError) as told:
        run(*resumed)
    assert str(told.value) == (
        f"resume={folder}: steps was 2 and is 4, lr was 0.001 and is 0.0002; add allow_config_change=true to go on like that"
    )
    run(*resumed, "allow_config_change=true")
    assert "changed  steps from 2 to 4" in capsys.readouterr().out
    record = json.loads((folder / "run.json").read_text())
    assert record["resumed"][0]["changed"] == {"steps": [2, 4], "lr": [0.001, 0.0002]}
    assert OmegaConf.load(folder / "config.yaml").steps == 4 and record["steps"] == 4
    again = OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), {"allow_config_change": False})
    with pytest.raises(ValueError, match=r"resume=.*: samples of a step was 2 and is 8; add allow_config_change=true"):
        load_previous_run(again, folder, 8)


def test_a_folder_that_holds_a_run_takes_no_other(run):
    _, folder = run(*FEW, "steps=1", "rank=2")
    with pytest.raises(ValueError, match=f"{folder}: holds a run already; resume={folder} goes on with it"):
        load_previous_run(OmegaConf.load(folder / "config.yaml"), folder, 2)


def test_of_a_changed_word_only_itself_is_shown():
    old = {"lr": 1, "training": {"lr": 1, "checkpoints_total_limit": 1}, "data": {"path": "a"}, "resume": None}
    new = {
        "lr": 2,
        "training": {"lr": 2, "checkpoints_total_limit": 3},
        "data": {"path": "b"},
        "resume": "x",
        "more": 1,
    }
    assert diff_configs(old, new) == {"lr": (1, 2), "data.path": ("a", "b"), "more": (None, 1)}


def test_the_words_of_before_stand_in_front_of_those_that_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stamp in ("1", "2"):
        home = tmp_path / "outputs" / "lora" / stamp
        (home / ".hydra").mkdir(parents=True)
        (home / ".hydra" / "overrides.yaml").write_text("- method=lora\n- lr=1e-3\n- resume=x.ckpt\n")
        os.utime(home / ".hydra" / "overrides.yaml", (int(stamp), int(stamp)))
    place = ["resume=outputs/lora/2", "hydra.run.dir=outputs/lora/2", "hydra.output_subdir=null"]
    assert restore_overrides(["resume=last"]) == ["method=lora", "lr=1e-3", *place]
    assert restore_overrides(["lr=2", "resume=outputs/lora/2", "-q"]) == ["-q", "method=lora", "lr=2", *place]
    (home / "run.json").write_text(json.dumps({"overrides": ["rank=2"]}))  # Hydra rewrites its own file at every start
    assert restore_overrides(["resume=last"]) == ["rank=2", *place]
    (home / "run.json").write_text(
        json.dumps({"overrides": ["rank=2", "optimizer._target_=os.system", "hydra.searchpath=[x]"]})
    )
    with pytest.raises(
        ValueError, match=r"resume=last: optimizer\._target_=os\.system calls what it names; give that word again"
    ):
        restore_overrides(["resume=last"])
    assert restore_overrides(["resume=last", "optimizer._target_=a.B"]) == ["rank=2", "optimizer._target_=a.B", *place]
    (home / "a.ckpt").touch()
    for given in (["lr=1"], ["resume=outputs/lora/2/a.ckpt"], ["resume=last", "hydra.run.dir=x"], ["resume=null"]):
        assert restore_overrides(given) == given
    with pytest.raises(ValueError, match=r"resume=nowhere: no run there; give a run's folder, last, or a \.ckpt file"):
        restore_overrides(["resume=nowhere"])


def test_rows_are_whole_and_columns_grow(tmp_path):
    metrics = MetricsCsv(tmp_path)
    metrics.log_metrics({"a": 1}, 1)
    metrics.log_metrics({"a": 2.5}, 2)
    metrics.log_metrics({"b": torch.tensor(0.5)}, 3)
    text = (tmp_path / "metrics.csv").read_text()
    assert text.splitlines() == ["step,a,b", "1,1.0,", "2,2.5,", "3,,0.5"]
    (tmp_path / "metrics.csv").write_text(text + "4,9")  # cut off
    again = MetricsCsv(tmp_path)
    again.truncate(2)
    again.log_metrics({"a": 3}, 3)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,a", "1,1.0", "2,2.5", "3,3.0"]
    again.truncate(0)
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_with_who_is_there(tmp_path):
    """The lock of one that was killed is none."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *QUICK_OVERRIDES,
        "steps=4000",
        "save_every=1",
        f"hydra.run.dir={tmp_path / 'a'}",
    ]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while "writes" not in (line := first.stdout.readline()):
        assert first.poll() is None, line
    again = [sys.executable, str(ROOT / "train.py"), f"resume={tmp_path / 'a'}"]
    second = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert second.returncode == 1 and second.stderr.count("\n") == 1
    assert f"{tmp_path / 'a'}: a run is running there, process {first.pid} on " in second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = subprocess.run([*again, "steps=4000", "lr=1"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert third.returncode == 1 and "lr was 0.001 and is 1" in third.stderr
    assert not (tmp_path / "a" / "lock").exists()


def test_a_resumed_run_is_the_same_run_on_wandb_and_logs_nothing_twice(run, tmp_path, monkeypatch):
    """But for the last step before it was cut, which may be there in part."""
    given = [*FEW, "rank=2", "steps=5", "save_every=2", "log_every=1", "logger=wandb", "sample_every=2", "ema=0.9"]
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        cut(patched, EMA, "on_train_batch_end", 4)
        run(*given, name="cut")
    folder = tmp_path / "cut"
    run(*given, f"resume={folder}", name="cut")
    one, other = (list(records(file)) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")))
    names = [{record.run.run_id for record in run if record.HasField("run")} for run in (one, other)]
    assert names[0] == names[1] == {json.loads((folder / "run.json").read_text())["wandb"]["id"]}
    steps = [[step_of(r.history) for r in run if r.HasField("history")] for run in (one, other)]
    assert max(steps[0]) == 4 and min(steps[1]) == 4 and {*steps[0], *steps[1]} == {0, 1, 2, 3, 4, 5}


def step_of(history) -> int:
    told = {item.key or ".".join(item.nested_key): item.value_json for item in history.item}
    return int(told["trainer/global_step"])

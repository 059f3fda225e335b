"""A resumed run is bit-identical to an uninterrupted one, in the same folder."""

import csv
import json
import os
import signal
import time

import pytest
import torch
from conftest import QUICK_OVERRIDES, save_images
from forked import ForkedProgram
from omegaconf import OmegaConf
from safetensors.torch import load_file
from test_loggers import read_wandb_records

from sdft.data.digits import Digits
from sdft.runs.checkpoint_file import read_checkpoint
from sdft.runs.metrics_csv import MetricsCsv
from sdft.runs.resume import diff_configs, load_previous_run, restore_overrides
from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.export import ResultExport
from sdft.training.callbacks.nan_check import NanCheck

FEW_DIGITS = ["data.per_digit=2", "data.digits=[0,1,2]"]
TIMING_METRICS = ("images_per_second", "memory_gb")


class PowerCut(Exception):
    pass


def interrupt_at(monkeypatch, callback, hook: str, step: int) -> None:
    """Raise `PowerCut` when the callback's hook is called at `step`."""
    original = getattr(callback, hook)

    def raise_at_step(self, trainer, *args):
        if trainer.global_step == step:
            raise PowerCut
        original(self, trainer, *args)

    monkeypatch.setattr(callback, hook, raise_at_step)


def read_rows(folder) -> list[dict]:
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if not k.endswith(TIMING_METRICS)} for row in csv.DictReader(file)]
    return [row for row in rows if any(value for name, value in row.items() if name != "step")]


def list_leaves(node) -> list:
    if isinstance(node, dict):
        return [leaf for key in sorted(node, key=str) for leaf in (key, *list_leaves(node[key]))]
    return [leaf for child in node for leaf in list_leaves(child)] if isinstance(node, list | tuple) else [node]


def assert_same_results(one, other) -> None:
    """Compare all but timings: weights, EMA, optimizer, schedule, metrics, samples, results."""
    checkpoints = [read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (one, other)]
    for checkpoint in checkpoints:
        training_metrics = checkpoint["callbacks"]["training_metrics"]
        training_metrics["last"] = {k: v for k, v in training_metrics["last"].items() if k not in TIMING_METRICS}
        for key in ("seconds", "steps", "elapsed"):
            training_metrics.pop(key)
        checkpoint.pop("loops")  # Lightning's own counters; resuming uses the step
    for a, b in zip(*map(list_leaves, checkpoints), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or a != a
    assert read_rows(one) == read_rows(other)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path, monkeypatch, name):
    overrides = [
        "steps=6",
        "save_every=2",
        "checkpoints_total_limit=9",
        "sample_every=3",
        "validate_every=3",
        *METHODS[name],
    ]
    if "dreambooth" in name:
        overrides.append(f"data.path={save_images(Digits('candy', [3], 5), tmp_path / 'subject', 5)}")
    else:
        overrides += FEW_DIGITS
    _, uninterrupted = run(*overrides, name="uninterrupted")
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        interrupt_at(patched, NanCheck, "on_train_batch_end", 5)
        run(*overrides, name="interrupted")
    folder = uninterrupted.parent / "interrupted"
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"
    run(*overrides, "workers=1", f"resume={folder}", name="interrupted")
    assert_same_results(uninterrupted, folder)
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "finished"
    assert [(r["step"], r["changed"]) for r in record["resumed"]] == [(4, {})]


@pytest.mark.parametrize(
    ("callback", "hook", "step"), [(EMA, "on_train_batch_end", 1), (ResultExport, "on_train_end", 3)]
)
@pytest.mark.slow
def test_a_run_resumes_from_its_start_and_from_its_last_step(
    run, shared_run, tmp_path, monkeypatch, callback, hook, step
):
    """Before the first checkpoint it starts again; after the last step it only writes the results."""
    overrides = [*FEW_DIGITS, "rank=2", "steps=3", "save_every=3", "ema=0.9", "log_every=2", "metrics=digits",
                 "protocol.images=1", "evaluate_every=2", "evaluate_images=1", "checkpoint_metric=CLIP-T"]  # fmt: skip
    _, uninterrupted = shared_run(*overrides)
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        interrupt_at(patched, callback, hook, step)
        run(*overrides, name="interrupted")
    folder = tmp_path / "interrupted"
    assert not (folder / "adapter").exists()
    run(*overrides, f"resume={folder}", name="interrupted")
    assert_same_results(uninterrupted, folder)
    timelines = [json.loads((path / "evaluation" / "timeline.json").read_text()) for path in (uninterrupted, folder)]
    assert timelines[0] == timelines[1]
    with pytest.raises(ValueError, match=r"resume=.*step 3 of 3.*allow_config_change=true"):
        run(*overrides, f"resume={folder}", name="interrupted")


@pytest.mark.slow
def test_changed_options_are_listed_and_must_be_confirmed(run, capsys):
    overrides = [*FEW_DIGITS, "rank=2", "steps=2"]
    _, folder = run(*overrides)
    resumed = [*overrides[:-1], "steps=4", "lr=2e-4", f"resume={folder}"]
    message = rf"^resume={folder}: .*steps from 2 to 4, lr from 0\.001 to 0\.0002; .*allow_config_change=true"
    with pytest.raises(ValueError, match=message):
        run(*resumed)
    run(*resumed, "allow_config_change=true")
    assert "steps from 2 to 4" in capsys.readouterr().out
    record = json.loads((folder / "run.json").read_text())
    assert record["resumed"][0]["changed"] == {"steps": [2, 4], "lr": [0.001, 0.0002]}
    assert OmegaConf.load(folder / "config.yaml").steps == 4 and record["steps"] == 4
    cfg = OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), {"allow_config_change": False})
    with pytest.raises(ValueError, match=r"resume=.*: .*samples of a step from 2 to 8; .*allow_config_change=true"):
        load_previous_run(cfg, folder, 8)


def test_a_folder_with_a_run_accepts_no_other_run(run):
    _, folder = run(*FEW_DIGITS, "steps=1", "rank=2")
    with pytest.raises(ValueError, match=f"^{folder}: .*resume={folder}"):
        load_previous_run(OmegaConf.load(folder / "config.yaml"), folder, 2)


def test_diff_configs_lists_a_changed_option_once():
    old = {"lr": 1, "training": {"lr": 1, "checkpoints_total_limit": 1}, "data": {"path": "a"}, "resume": None}
    new = {
        "lr": 2,
        "training": {"lr": 2, "checkpoints_total_limit": 3},
        "data": {"path": "b"},
        "resume": "x",
        "more": 1,
    }
    assert diff_configs(old, new) == {"lr": (1, 2), "data.path": ("a", "b"), "more": (None, 1)}


def test_restored_overrides_precede_the_new_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stamp in ("1", "2"):
        folder = tmp_path / "outputs" / "lora" / stamp
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text("- method=lora\n- lr=1e-3\n- resume=x.ckpt\n")
        os.utime(folder / ".hydra" / "overrides.yaml", (int(stamp), int(stamp)))
    output = ["resume=outputs/lora/2", "hydra.run.dir=outputs/lora/2", "hydra.output_subdir=null"]
    assert restore_overrides(["resume=last"]) == ["method=lora", "lr=1e-3", *output]
    assert restore_overrides(["lr=2", "resume=outputs/lora/2"]) == ["method=lora", "lr=2", *output]
    (folder / "run.json").write_text(
        json.dumps({"format": 1, "state": "stopped", "overrides": ["rank=2"]})
    )  # Hydra rewrites overrides.yaml at every start
    assert restore_overrides(["resume=last"]) == ["rank=2", *output]
    record = {"format": 1, "state": "stopped", "overrides": ["rank=2", "optimizer._target_=os.system"]}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"resume=last: optimizer\._target_=os\.system.*repeat"):
        restore_overrides(["resume=last"])
    assert restore_overrides(["resume=last", "optimizer._target_=a.B"]) == ["rank=2", "optimizer._target_=a.B", *output]
    (folder / "a.ckpt").touch()
    for arguments in (["lr=1"], ["resume=outputs/lora/2/a.ckpt"], ["resume=last", "hydra.run.dir=x"], ["resume=null"]):
        assert restore_overrides(arguments) == arguments
    with pytest.raises(ValueError, match=r"resume=nowhere: .*last, or a \.ckpt file"):
        restore_overrides(["resume=nowhere"])


def test_metrics_csv_drops_truncated_rows_and_adds_columns(tmp_path):
    metrics = MetricsCsv(tmp_path)
    metrics.log_metrics({"a": 1}, 1)
    metrics.log_metrics({"a": 2.5}, 2)
    metrics.log_metrics({"b": torch.tensor(0.5)}, 3)
    text = (tmp_path / "metrics.csv").read_text()
    assert text.splitlines() == ["step,a,b", "1,1.0,", "2,2.5,", "3,,0.5"]
    (tmp_path / "metrics.csv").write_text(text + "4,9")  # truncated
    resumed = MetricsCsv(tmp_path)
    resumed.truncate(2)
    resumed.log_metrics({"a": 3}, 3)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,a", "1,1.0", "2,2.5", "3,3.0"]
    resumed.truncate(0)
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.slow
def test_a_second_run_in_a_folder_names_the_first(tmp_path):
    """A killed process holds no lock."""
    overrides = [*QUICK_OVERRIDES, "steps=4000", "save_every=1", f"hydra.run.dir={tmp_path / 'a'}"]
    first = ForkedProgram(*overrides, cwd=tmp_path)
    while str(tmp_path / "a") not in first.read("out"):
        assert first.poll() is None, first.read("err")
        time.sleep(0.1)
    resume = f"resume={tmp_path / 'a'}"
    second = ForkedProgram(resume, cwd=tmp_path).communicate()
    assert second.returncode == 1 and second.stderr.count("\n") == 1
    assert f"{tmp_path / 'a'}: " in second.stderr and f"process {first.pid} on " in second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = ForkedProgram(resume, "steps=4000", "lr=1", cwd=tmp_path).communicate()
    assert third.returncode == 1 and "lr from 0.001 to 1" in third.stderr
    assert not (tmp_path / "a" / "lock").exists()


@pytest.mark.slow
def test_a_resumed_run_continues_its_wandb_run_without_duplicates(run, tmp_path, monkeypatch):
    """Except for the last step before the interruption, which may be incomplete."""
    overrides = [
        *FEW_DIGITS,
        "rank=2",
        "steps=5",
        "save_every=2",
        "log_every=1",
        "logger=wandb",
        "sample_every=2",
        "ema=0.9",
    ]
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        interrupt_at(patched, EMA, "on_train_batch_end", 4)
        run(*overrides, name="interrupted")
    folder = tmp_path / "interrupted"
    run(*overrides, f"resume={folder}", name="interrupted")
    logs = [list(read_wandb_records(file)) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
    run_ids = [{record.run.run_id for record in log if record.HasField("run")} for log in logs]
    assert run_ids[0] == run_ids[1] == {json.loads((folder / "run.json").read_text())["wandb"]["id"]}
    steps = [[read_step(r.history) for r in log if r.HasField("history")] for log in logs]
    assert max(steps[0]) == 4 and min(steps[1]) == 4 and {*steps[0], *steps[1]} == {0, 1, 2, 3, 4, 5}


def read_step(history) -> int:
    values = {item.key or ".".join(item.nested_key): item.value_json for item in history.item}
    return int(values["trainer/global_step"])

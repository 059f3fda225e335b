"""Optuna searches: proposals, pruning, objectives, and resuming after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sdft.sweeps.grid import build_search_space, is_range_override
from sdft.sweeps.optuna_search import STARTUP_TRIALS, OptunaSearch, objective_directions, read_intermediate_scores
from sdft.sweeps.sweep import run_sweep

OVERRIDES = ["rank=int(interval(1,64))", "seed=0", "trials=6"]


@pytest.fixture
def search(tmp_path):
    """A function that starts or resumes a search over `rank`."""

    def create(trials=9, objectives=None, folder="", **options):
        space = {"rank": IntDistribution(1, 64)}
        (tmp_path / folder).mkdir(exist_ok=True)
        return OptunaSearch(
            tmp_path / folder, space, ["seed=0"], objectives or {"validation/loss": False}, trials, **options
        )

    return create


def build_report(scores: dict[str, dict], metrics: dict[str, dict], **changes) -> dict:
    """Scores of one state in the format of `scores.json`."""
    metrics = {
        name: {"number_format": "{:.3f}", "description": "", "baseline": "base"} | metrics[name] for name in metrics
    }
    state = {"label": "x", "image_folder": "images", "scores": {"prompts": scores}, "difference": {}}
    return {
        "schema": 1, "settings": "x", "scorers": {}, "images": 1, "sampling": {"seed": 0}, "groups": {"prompts": ["a"]},
        "metrics": {"prompts": metrics}, "states": [state], "reference": {}, **changes,
    }  # fmt: skip


def write_finished_run(job, loss: float, **scores: float) -> None:
    job.folder.mkdir(exist_ok=True)
    record = {
        "format": 1,
        "state": "finished",
        "command": [],
        "options": {},
        "trainable": {"unet": 1},
        "seconds": 1.0,
        "seconds_per_step": 1.0,
    }
    record |= {"last": {"memory_gb": 1.0}, "result_mb": 1.0, "validation_loss": [2.0, loss], "device": "cpu"}
    (job.folder / "run.json").write_text(json.dumps(record))
    if scores:
        (job.folder / "evaluation").mkdir()
        values = {name: {"value": value} for name, value in scores.items()}
        report = build_report(values, {name: {"higher_is_better": name != "drift"} for name in values})
        (job.folder / "evaluation" / "scores.json").write_text(json.dumps(report))


def write_intermediate_losses(job, losses: list[float]) -> None:
    job.folder.mkdir(exist_ok=True)
    rows = [f"{step},{loss}" for step, loss in enumerate(losses)]
    (job.folder / "metrics.csv").write_text("\n".join(["step,validation/loss", *rows, ""]))


def test_the_search_space_comes_from_files_and_overrides():
    parameters = {
        "rank": {"values": [1, 4]},
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "alpha": {"min": 1, "max": 9},
        "steps": {"value": 40},
        "flip": {"value": True},
    }
    space, fixed = build_search_space(
        parameters, ["alpha=tag(log,interval(0.5,8))", "snr_gamma=1,5", "warmup=0.1", "steps=7"]
    )
    assert space == {
        "rank": CategoricalDistribution([1, 4]),
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "alpha": FloatDistribution(0.5, 8.0, log=True),
        "snr_gamma": CategoricalDistribution(["1", "5"]),
    }
    assert fixed == ["flip=true", "warmup=0.1", "steps=7"]
    assert (
        is_range_override("lr=interval(0,1)")
        and not is_range_override("lr=1,2")
        and not is_range_override("--config-name=train")
    )


@pytest.mark.slow
def test_a_search_prints_the_best_options_and_writes_a_table(fake_train_script, tmp_path, capfd):
    assert run_sweep(None, OVERRIDES) == 0
    printed = capfd.readouterr().out
    tried = [int(line.split()[0]) for line in fake_train_script()]
    assert len(tried) == 6 and f"optimum    rank={max(tried)}: validation/loss {1 / max(tried):.4f}" in printed
    (table,) = tmp_path.glob("multirun/lora/*/table.csv")
    assert sorted(int(row["rank"]) for row in csv.DictReader(table.open())) == sorted(tried)
    assert run_sweep(None, OVERRIDES) == 0 and len(fake_train_script()) == 6
    assert run_sweep(None, [*OVERRIDES[:2], "trials=8"]) == 0 and len(fake_train_script()) == 8  # extends the search


def test_equal_searches_propose_equal_options(search, tmp_path):
    ranks = []
    for _ in range(2):
        (tmp_path / "study.log").unlink(missing_ok=True)
        source = search(sampler="random")
        ranks.append([job.overrides[-1] for job in iter(source.next_job, None)])
    assert ranks[0] == ranks[1] and len(set(ranks[0])) > 3


@pytest.mark.slow
def test_a_killed_search_resumes(fake_train_script, tmp_path):
    program = "import sys; from sdft.sweeps.sweep import run_sweep; "
    program += f"sys.exit(run_sweep(None, {OVERRIDES}))"
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"NAP": "1.5"})
    deadline = time.monotonic() + 90
    while not (tmp_path / "ran.txt").exists() or len(fake_train_script()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(2)
    interrupted = (tmp_path / "ran.txt").read_text().split("\n")[2]
    assert run_sweep(None, OVERRIDES) == 0
    tried = Counter(fake_train_script())
    assert sum(tried.values()) == 7 and tried[interrupted] >= 2  # only the third ran twice
    (table,) = tmp_path.glob("multirun/lora/*/table.csv")
    assert len(list(csv.DictReader(table.open()))) == 6


def test_failed_trials_are_retried(search):
    source = search(trials=2)
    one, two = source.next_job(), source.next_job()
    write_finished_run(one, 0.5)
    assert (
        source.record_end(one, 0) == "finished" and source.record_end(two, 1) == "failed" and source.next_job() is None
    )
    resumed = search(trials=2)
    third = resumed.next_job()
    assert third.overrides == two.overrides and third.folder != two.folder and resumed.next_job() is None
    write_finished_run(third, 0.4)
    resumed.record_end(third, 0)
    assert search(trials=2).next_job() is None


def test_jobs_worse_than_the_median_are_pruned(search):
    source = search()
    for number in range(STARTUP_TRIALS):
        job = source.next_job()
        write_intermediate_losses(job, [2.0, 1.0 - number / 10, 0.5])
        assert not source.should_stop(job)
        write_finished_run(job, 0.5)
        source.record_end(job, 0)
    good, bad = source.next_job(), source.next_job()
    write_intermediate_losses(good, [2.0, 0.3])
    write_intermediate_losses(bad, [2.0])
    assert not source.should_stop(good) and not source.should_stop(bad)
    write_intermediate_losses(bad, [2.0, 1.9])
    assert source.should_stop(bad) and not source.should_stop(good)
    assert source.record_end(bad, -15) == "pruned" and not source.failed
    assert "1 pruned" in source.summary_lines()[0]
    assert not search(prune=False).should_stop(good)


def test_several_objectives_give_a_pareto_front(search):
    source = search(objectives={"CLIP-I": True, "drift": False})
    for one, other in ((0.9, 0.5), (0.5, 0.1), (0.4, 0.4)):
        job = source.next_job()
        write_finished_run(job, 1.0, **{"CLIP-I": one, "drift": other})
        assert source.record_end(job, 0) == "finished" and not source.should_stop(job)
    front = [line for line in source.summary_lines() if line.startswith("pareto")]
    assert [line.split(": ")[1] for line in front] == ["CLIP-I 0.9000, drift 0.5000", "CLIP-I 0.5000, drift 0.1000"]


def test_unknown_objectives_and_samplers_are_named(search):
    source = search(objectives={"CLIP": True})
    job = source.next_job()
    write_finished_run(job, 1.0, **{"CLIP-I": 0.5})
    with pytest.raises(ValueError, match="objectives=CLIP: .*CLIP-I, validation/loss"):
        source.record_end(job, 0)
    source = search(objectives={"drift": True}, folder="other")
    job = source.next_job()
    write_finished_run(job, 1.0, drift=0.5)
    with pytest.raises(ValueError, match="objectives=drift: lower"):
        source.record_end(job, 0)
    with pytest.raises(ValueError, match="sampler=best: .*tpe, random"):
        search(sampler="best")
    assert objective_directions(["CLIP-I", "controls/drift", "x"], {"x": "minimize"}) == {
        "CLIP-I": True,
        "controls/drift": False,
        "x": False,
    }


def test_intermediate_scores_are_read_from_the_run(tmp_path):
    assert read_intermediate_scores(tmp_path, "CLIP-I") == read_intermediate_scores(tmp_path, "validation/loss") == {}
    (tmp_path / "evaluation").mkdir()
    entries = [
        {"step": s, "images": 1, "groups": {}, "scores": {"prompts": {"CLIP-I": {"value": v}}}}
        for s, v in ((0, 0.1), (10, 0.2), (20, None))
    ]
    (tmp_path / "evaluation" / "timeline.json").write_text(json.dumps(entries))
    assert read_intermediate_scores(tmp_path, "CLIP-I") == {10: 0.2}


def test_an_invalid_range_is_rejected_before_the_first_job(fake_train_script, tmp_path):
    with pytest.raises(Exception, match="rank"):
        run_sweep(None, ["rank=interval(0.5,9.5)", "trials=3"])
    assert not (tmp_path / "ran.txt").exists() and not (tmp_path / "multirun").exists()
    assert optuna.__version__ >= "4.9"

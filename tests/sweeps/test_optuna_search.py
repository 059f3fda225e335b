"""A search proposes words, trainable from scores, stops what is hopeless, and survives a kill."""

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

WORDS = ["rank=int(interval(1,64))", "seed=0", "trials=6"]


@pytest.fixture
def search(tmp_path):
    """A function that begins a search over `rank`, or goes on with it."""

    def begin(trials=9, objectives=None, place="", **more):
        space = {"rank": IntDistribution(1, 64)}
        (tmp_path / place).mkdir(exist_ok=True)
        return OptunaSearch(
            tmp_path / place, space, ["seed=0"], objectives or {"validation/loss": False}, trials, **more
        )

    return begin


def finish(job, loss: float, **scores: float) -> None:
    job.folder.mkdir(exist_ok=True)
    facts = {
        "state": "finished",
        "command": [],
        "options": {},
        "trainable": {"unet": 1},
        "seconds": 1.0,
        "seconds_per_step": 1.0,
    }
    facts |= {"last": {"memory_gb": 1.0}, "result_mb": 1.0, "validation_loss": [2.0, loss], "device": "cpu"}
    (job.folder / "run.json").write_text(json.dumps(facts))
    if scores:
        (job.folder / "evaluation").mkdir()
        told = {name: {"value": value} for name, value in scores.items()}
        facts = {
            "metrics": {"prompts": {name: {"higher_is_better": name != "drift"} for name in told}},
            "states": [{"label": "x", "scores": {"prompts": told}}],
        }
        (job.folder / "evaluation" / "scores.json").write_text(json.dumps(facts))


def on_its_way(job, losses: list[float]) -> None:
    job.folder.mkdir(exist_ok=True)
    rows = [f"{step},{loss}" for step, loss in enumerate(losses)]
    (job.folder / "metrics.csv").write_text("\n".join(["step,validation/loss", *rows, ""]))


def test_files_and_words_say_what_may_be_picked():
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


def test_a_search_ends_in_the_best_words_and_a_table(fake_train_script, tmp_path, capfd):
    assert run_sweep(None, WORDS) == 0
    told = capfd.readouterr().out
    tried = [int(line.split()[0]) for line in fake_train_script()]
    assert len(tried) == 6 and f"found    rank={max(tried)}: validation/loss {1 / max(tried):.4f}" in told
    (table,) = tmp_path.glob("multirun/lora/*/table.csv")
    assert sorted(int(row["rank"]) for row in csv.DictReader(table.open())) == sorted(tried)
    assert run_sweep(None, WORDS) == 0 and len(fake_train_script()) == 6
    assert run_sweep(None, [*WORDS[:2], "trials=8"]) == 0 and len(fake_train_script()) == 8  # more of the same


def test_the_same_search_proposes_the_same_words(search, tmp_path):
    ranks = []
    for _ in range(2):
        (tmp_path / "study.log").unlink(missing_ok=True)
        feed = search(sampler="random")
        ranks.append([job.overrides[-1] for job in iter(feed.next_job, None)])
    assert ranks[0] == ranks[1] and len(set(ranks[0])) > 3


def test_a_killed_search_goes_on_where_it_was(fake_train_script, tmp_path):
    program = (
        f"import sys; from sdft.sweeps.sweep import sweep; sys.argv = ['train.py']; sys.exit(sweep(None, {WORDS}))"
    )
    first = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"NAP": "1.5"})
    deadline = time.monotonic() + 90
    while not (tmp_path / "ran.txt").exists() or len(fake_train_script()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(2)
    interrupted = (tmp_path / "ran.txt").read_text().split("\n")[2]
    assert run_sweep(None, WORDS) == 0
    tried = Counter(fake_train_script())
    assert sum(tried.values()) == 7 and tried[interrupted] >= 2  # the third began twice, none else
    (table,) = tmp_path.glob("multirun/lora/*/table.csv")
    assert len(list(csv.DictReader(table.open()))) == 6


def test_words_that_failed_are_tried_again(search):
    feed = search(trials=2)
    one, two = feed.next_job(), feed.next_job()
    finish(one, 0.5)
    assert feed.record_end(one, 0) == "finished" and feed.record_end(two, 1) == "failed" and feed.next_job() is None
    again = search(trials=2)
    third = again.next_job()
    assert third.overrides == two.overrides and third.folder != two.folder and again.next_job() is None
    finish(third, 0.4)
    again.record_end(third, 0)
    assert search(trials=2).next_job() is None


def test_what_is_worse_than_half_of_the_others_is_stopped(search):
    feed = search()
    for number in range(STARTUP_TRIALS):
        job = feed.next_job()
        on_its_way(job, [2.0, 1.0 - number / 10, 0.5])
        assert not feed.should_stop(job)
        finish(job, 0.5)
        feed.record_end(job, 0)
    good, bad = feed.next_job(), feed.next_job()
    on_its_way(good, [2.0, 0.3])
    on_its_way(bad, [2.0])
    assert not feed.should_stop(good) and not feed.should_stop(bad)
    on_its_way(bad, [2.0, 1.9])
    assert feed.should_stop(bad) and not feed.should_stop(good)
    assert feed.record_end(bad, -15) == "pruned" and not feed.failed
    assert "1 stopped early" in feed.summary_lines()[0]
    assert not search(prune=False).should_stop(good)


def test_several_objectives_have_a_front(search):
    feed = search(objectives={"CLIP-I": True, "drift": False})
    for one, other in ((0.9, 0.5), (0.5, 0.1), (0.4, 0.4)):
        job = feed.next_job()
        finish(job, 1.0, **{"CLIP-I": one, "drift": other})
        assert feed.record_end(job, 0) == "finished" and not feed.should_stop(job)
    front = [line for line in feed.summary_lines() if line.startswith("pareto")]
    assert [line.split(": ")[1] for line in front] == ["CLIP-I 0.9000, drift 0.5000", "CLIP-I 0.5000, drift 0.1000"]


def test_scores_that_are_not_there_are_named(search):
    feed = search(objectives={"CLIP": True})
    job = feed.next_job()
    finish(job, 1.0, **{"CLIP-I": 0.5})
    with pytest.raises(ValueError, match="objectives=CLIP: the jobs have CLIP-I, validation/loss; choose among them"):
        feed.record_end(job, 0)
    feed = search(objectives={"drift": True}, place="other")
    job = feed.next_job()
    finish(job, 1.0, drift=0.5)
    with pytest.raises(ValueError, match="objectives=drift: lower is better"):
        feed.record_end(job, 0)
    with pytest.raises(ValueError, match="sampler=best: choose one of tpe, random"):
        search(sampler="best")
    assert objective_directions(["CLIP-I", "controls/drift", "x"], {"x": "minimize"}) == {
        "CLIP-I": True,
        "controls/drift": False,
        "x": False,
    }


def test_scores_on_the_way_are_read_from_the_run(tmp_path):
    assert read_intermediate_scores(tmp_path, "CLIP-I") == read_intermediate_scores(tmp_path, "validation/loss") == {}
    (tmp_path / "evaluation").mkdir()
    entries = [
        {"step": s, "scores": {"prompts": {"CLIP-I": {"value": v}}}} for s, v in ((0, 0.1), (10, 0.2), (20, None))
    ]
    (tmp_path / "evaluation" / "timeline.json").write_text(json.dumps(entries))
    assert read_intermediate_scores(tmp_path, "CLIP-I") == {10: 0.2}


def test_a_word_that_no_job_could_take_is_refused_before_the_first(fake_train_script, tmp_path):
    with pytest.raises(Exception, match="rank"):
        run_sweep(None, ["rank=interval(0.5,9.5)", "trials=3"])
    assert not (tmp_path / "ran.txt").exists() and not (tmp_path / "multirun").exists()
    assert optuna.__version__ >= "4.9"

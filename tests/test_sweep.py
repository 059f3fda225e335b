"""Sweeps become jobs, each a process of its own; jobs become a table, a page and an answer."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT
from test_config import checked

from sdft import jobs as processes
from sdft.charts import scatter
from sdft.compare import answer, compare, differences
from sdft.jobs import usable
from sdft.results import Run, grouped, metrics
from sdft.sweep import FOLDER, changing, held, jobs, read, sweep, values_of

FAKE = """
import json, os, pathlib, sys, time
words = dict(w.split('=', 1) for w in sys.argv[1:] if '=' in w)
folder = pathlib.Path(words.pop('hydra.run.dir'))
with open('ran.txt', 'a') as file:
    print(words.get('rank'), words.get('seed'), os.environ.get('OMP_NUM_THREADS'), file=file, flush=True)
time.sleep(float(os.environ.get('NAP', 0)))
if words.get('rank') == os.environ.get('BAD'):
    sys.exit(3)
rank, seed = int(words.get('rank', 8)), int(words.get('seed', 0))
facts = {'learns': {'unet': 5 * rank}, 'seconds': 2.0, 'seconds_per_step': 0.5, 'last': {'memory_gb': 1.0}, 'result_mb': 3.0,
         'validation_loss': [2.0, 1.0 / rank], 'device': 'cpu', 'state': 'finished', 'command': ['train.py', *sys.argv[1:]],
         'words': {'rank': rank, 'seed': seed, 'method': 'lora'}}
(folder / 'run.json').write_text(json.dumps(facts))
"""


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """In an empty folder whose train.py only says what it was asked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(FAKE)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    return lambda: sorted((tmp_path / "ran.txt").read_text().split("\n")[:-1])


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sweep_is_one_of_wandb_too_and_its_jobs_compose(file):
    told = yaml.safe_load(file.read_text())
    assert told["program"] == "train.py" and told["method"] == "grid" and "${args_no_hyphens}" in told["command"]
    assert file.read_text().startswith(f"# python train.py sweeps={file.stem} ")
    for job in jobs(values_of(read(file.stem)), []):
        checked(*job)


def test_jobs_are_all_combinations_and_words_take_the_files_place():
    values = {"rank": [4, 8], "seed": [0, 1], "flip": [True]}
    assert jobs(values, []) == [[f"rank={r}", f"seed={s}", "flip=true"] for r in (4, 8) for s in (0, 1)]
    assert jobs(values, ["seed=7", "lr=1"]) == [[f"rank={r}", "flip=true", "seed=7", "lr=1"] for r in (4, 8)]
    assert changing(jobs(values, ["seed=7"]), 1) == ["rank=8"]


def test_words_with_several_values_are_hydras():
    assert jobs({}, ["rank=4,8", "seed=range(2)", "lr=1e-4"]) == [
        [f"rank={r}", f"seed={s}", "lr=1e-4"] for r in (4, 8) for s in (0, 1)
    ]
    assert jobs({"rank": [1]}, ["rank=2,3"]) == [["rank=2"], ["rank=3"]]
    assert jobs({}, ["prompts=[a cat,a dog]"]) == [["prompts=[a cat,a dog]"]]  # a list is one value
    with pytest.raises(ValueError, match=r"lr=interval\(0,1\): only a list of values"):
        jobs({}, ["lr=interval(0,1)"])


def test_a_bad_word_is_refused_before_any_job_runs(faked, tmp_path):
    with pytest.raises(Exception, match="rank"):
        sweep(None, ["rank=4,many"])
    assert not (tmp_path / "ran.txt").exists() and not (tmp_path / "multirun").exists()
    with pytest.raises(ValueError, match="n_jobs=some: choose 1 or more"):
        sweep(None, ["rank=4,8", "n_jobs=some"])


def test_a_failed_job_stops_no_other_and_only_it_runs_again(faked, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("BAD", "2")
    assert sweep(None, ["rank=1,2,4", "seed=0"]) == 1
    told = capfd.readouterr()
    assert "1 of 3 jobs failed: rank=2" in told.err and "job      3 of 3: rank=4" in told.out
    assert len(faked()) == 3
    (table,) = tmp_path.glob("multirun/lora/*/table.csv")
    assert [row["rank"] for row in csv.DictReader(table.open())] == ["1", "4"]
    monkeypatch.delenv("BAD")
    assert sweep(None, ["rank=1,2,4", "seed=0"]) == 0
    assert len(faked()) == 4 and faked().count("2 0 None") == 2
    assert "2 of 3 jobs are finished" in capfd.readouterr().out
    assert [row["rank"] for row in csv.DictReader(table.open())] == ["1", "2", "4"]
    assert sweep(None, ["rank=1,2", "seed=0"]) == 0  # other jobs are another sweep
    assert len(faked()) == 6 and len(list(tmp_path.glob("multirun/lora/*"))) == 2


def test_a_killed_sweep_goes_on_where_it_was(faked, tmp_path):
    program = "import sys; from sdft.sweep import sweep; sys.argv = ['train.py']; sys.exit(sweep(None, ['rank=1,2,4', 'seed=0']))"
    first = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"NAP": "1.5"})
    deadline = time.monotonic() + 60
    while not (tmp_path / "ran.txt").exists() or len(faked()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(2.5)  # a job that outlived its sweep would be finished by now
    states = [(tmp_path / file).is_file() for file in sorted(tmp_path.glob("multirun/lora/*/*/run.json"))]
    assert len(states) == 1
    assert sweep(None, ["rank=1,2,4", "seed=0"]) == 0
    assert [line.split()[0] for line in faked()] == ["1", "2", "2", "4"]
    (table,) = tmp_path.glob("multirun/lora/*/table.csv")
    assert [row["rank"] for row in csv.DictReader(table.open())] == ["1", "2", "4"]


def test_jobs_side_by_side_share_the_cores_and_write_logs(faked, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert sweep(None, ["rank=1,2,4", "seed=0", "n_jobs=2", "accelerator=cpu"]) == 0
    assert [line.split()[2] for line in faked()] == ["2", "2", "2"]
    assert len(list(tmp_path.glob("multirun/lora/*/*/log.txt"))) == 3


def test_each_job_has_gpus_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    place = lambda *ids: {"CUDA_VISIBLE_DEVICES": ",".join(ids)}  # noqa: E731
    assert usable(None, [("auto", "auto")]) == [{}]  # devices=auto takes all
    assert usable("4", [("auto", "auto")]) == [place("0"), place("1"), place("2"), place("3")]
    assert usable(None, [(2, "auto")]) == [place("0", "1"), place("2", "3")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-a,GPU-b")
    assert usable("2", [(2, "auto")]) == [place("5", "7"), place("GPU-a", "GPU-b")]
    assert usable(None, [(1, "cpu")]) == [{}]
    with pytest.raises(ValueError, match="n_jobs=0 devices=8: there are 4 GPUs"):
        usable(None, [(8, "auto")])
    with pytest.raises(ValueError, match="n_jobs=3 devices=2: there are 4 GPUs"):
        usable("3", [(2, "auto")])


def test_flags_stand_before_the_words(faked, tmp_path, monkeypatch):
    """Overrides behind flags are lost on the ranks that Lightning starts."""
    seen = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(processes.subprocess, "run", lambda command, **_: seen.append(command) or done)
    processes.Job(tmp_path / "0", ["rank=4", "--config-name=train"], "").run({}, shared=False)
    assert seen[0][2:] == ["--config-name=train", "rank=4", f"hydra.run.dir={tmp_path / '0'}"]


def made(rank: int, seed: int, values: list[float], learns: int | None = None) -> Run:
    """A run with a score a picture."""
    score = {"value": sum(values) / len(values), "each": values}
    report = {
        "images": 1,
        "groups": {"prompts": [str(i) for i in range(len(values))]},
        "sampling": {"seed": 0},
        "metrics": {"prompts": {"CLIP-I": {"form": "{:.3f}", "higher_is_better": True}}},
        "states": [{"label": "x", "scores": {"prompts": {"CLIP-I": value}}} for value in ({"value": 0.0}, score)],
    }
    costs = {
        "learns": learns or rank,
        "seconds": 9.0,
        "s/it": 1.0,
        "memory GB": 1.0,
        "file MB": 1.0,
        "validation/loss": 1.0,
    }
    return Run(ROOT, {"rank": rank, "alpha": rank, "seed": seed}, costs, 1.0, "cpu", report)


def test_runs_that_differ_by_seed_alone_are_one_setting():
    runs = [made(rank, seed, [float(rank + seed)] * 3) for rank in (1, 2) for seed in (0, 1)]
    settings = grouped(runs)
    assert [s.label for s in settings] == ["rank=1", "rank=2"]  # alpha follows rank
    assert settings[1].mean("CLIP-I") == 2.5 and settings[1].spread("CLIP-I") == pytest.approx(0.5**0.5)
    assert settings[1].each("CLIP-I").tolist() == [2.5] * 3


def noisy(level: float, step: int) -> list[float]:
    return [level + ((i * step) % 11 - 5) / 100 for i in range(24)]


def test_the_answer_is_the_cheapest_that_surely_keeps_most_of_the_gain():
    runs = [made(r, s, noisy(level, 37 + r)) for r, level in {1: 0.30, 4: 0.59, 16: 0.61}.items() for s in (0, 1)]
    best, enough = answer(grouped(runs), "CLIP-I")
    assert best.startswith("best     rank=16: CLIP-I 0.6") and best.endswith("over 2 seeds each")
    assert enough.startswith("enough   rank=4: 0.5") and "learns 4 times less and keeps 9" in enough
    runs = [made(r, 0, noisy(level, 37)) for r, level in ((1, 0.3), (16, 0.6))]
    assert (
        "nothing cheaper surely keeps 90% of the gain; nearest is rank=1 with 50%" in answer(grouped(runs), "CLIP-I")[1]
    )
    assert answer(grouped(runs[:1]), "CLIP-I") == []


def test_a_seed_that_failed_is_not_averaged_away():
    runs = [made(r, s, noisy(level, 37)) for r, s, level in ((1, 0, 0.75), (1, 1, 0.40), (16, 0, 0.6), (16, 1, 0.61))]
    assert answer(grouped(runs), "CLIP-I")[1].startswith("enough   nothing cheaper surely keeps 90%")


def test_little_to_go_on_is_not_enough():
    """Six pictures that vary widely: what cannot be told apart is no equal."""
    runs = [made(1, 0, [0.1, 0.9, 0.6, 0.7, 0.2, 0.9]), made(16, 0, [0.9, 0.2, 0.8, 0.6, 0.9, 0.1])]
    assert answer(grouped(runs), "CLIP-I")[1].startswith("enough   nothing cheaper surely keeps")
    alone = [made(1, 0, [0.5]), made(16, 0, [0.6])]
    for run, loss in zip(alone, (0.8, 0.7), strict=True):
        run.costs["validation/loss"] = loss
    assert "cannot be told" in answer(grouped(alone), "validation/loss")[1]


def test_a_seed_without_a_score_makes_its_setting_unknown():
    runs = [
        made(r, s, noisy(level, 37))
        for r, s, level in ((1, 0, 0.6), (1, 1, 0.6), (4, 0, 0.5), (4, 1, 0.5), (16, 0, 0.61))
    ]
    runs[1].report["states"][1]["scores"]["prompts"]["CLIP-I"]["value"] = None
    assert not any("rank=1:" in line for line in answer(grouped(runs), "CLIP-I"))


def test_words_of_one_method_part_its_runs_when_they_vary():
    runs = [made(r, 0, noisy(0.5, 37)) for r in (4, 64)]
    for run in runs:
        run.words = {"method": "lora", "rank": run.words["rank"], "seed": 0}
    other = made(1, 0, noisy(0.5, 37))
    other.words = {"method": "sft", "seed": 0}
    assert [s.label for s in grouped([*runs, other])] == ["method=lora rank=4", "method=lora rank=64", "method=sft"]
    assert [s.label for s in grouped([runs[0], other])] == ["method=lora", "method=sft"]


def test_unlike_evaluations_are_not_compared():
    runs = [made(r, 0, noisy(0.5, 37)) for r in (1, 4)]
    assert set(metrics(runs)) == {"CLIP-I", "validation/loss"}
    runs[1].report["judges"] = {"clip": "another"}
    assert set(metrics(runs)) == {"validation/loss"}


def test_labels_are_no_formulas():
    assert "$a$" in scatter({"template=$a$ and $b_": (1.0, 2.0), "b": (2.0, 3.0)}, "learns", "CLIP-I", True, False)


def test_a_sweep_that_runs_is_not_joined(faked, tmp_path):
    assert sweep(None, ["rank=1", "seed=0"]) == 0
    (folder,) = tmp_path.glob("multirun/lora/*")
    lock = held(folder)
    with pytest.raises(ValueError, match="the same sweep is running there"):
        sweep(None, ["rank=1", "seed=0"])
    lock.close()


def test_training_seeds_are_paired_by_their_number():
    one = [made(1, s, noisy(level, 37)) for s, level in ((0, 0.5), (1, 0.6))]
    other = [made(2, s, noisy(level, 37)) for s, level in ((1, 0.6), (0, 0.5), (7, 0.9))]
    assert differences(*grouped(one + other), "CLIP-I") == pytest.approx([0, 0])


def test_the_table_and_page_are_those_of_the_lab_report(run, capsys):  # S1-14..16
    folders = []
    for method in ("lora", "sft"):
        words = [
            "steps=2",
            f"method={method}",
            "method.text_encoder=false",
            "held_out=10",
            "log_every=2",
            "metrics=digits",
        ]
        _, folder = run(*words, "protocol.images=2", "model.weights=pretrained", name=method)
        folders.append(folder)
        record = json.loads((folder / "run.json").read_text())
        assert 0 < record["seconds_per_step"] < record["seconds"] and record["result_mb"] > 0.1
    capsys.readouterr()
    place = folders[0].parent / "both"
    compare(folders, place)
    told = capsys.readouterr().out
    for column in ("learns", "seconds", "s/it", "memory GB", "file MB", "validation/loss", "style and digit", "CLIP-I"):
        assert column in told
    assert "66,304" in told and "2,380,516" in told and "cpu (" in told and "without the first step" in told
    assert "\nmethod=lora lr=0.001 " in told and "best     method=lora" in told
    page = (place / "compare.html").read_text()
    assert page.count("<svg") == 3 and page.count("data:image/png") == 18  # base and two settings, six prompts
    rows = list(csv.DictReader((place / "table.csv").open()))
    assert [row["method"] for row in rows] == ["lora", "sft"] and float(rows[0]["CLIP-I"]) < 1


def test_compare_is_a_command_of_its_own(faked, tmp_path):
    assert sweep(None, ["rank=1,2", "seed=0,1"]) == 0
    (folder,) = tmp_path.glob("multirun/lora/*")
    for file in ("table.csv", "compare.html"):
        (folder / file).unlink()
    command = [sys.executable, "-m", "sdft.compare"]
    done = subprocess.run([*command, folder, "metric=validation/loss"], capture_output=True, text=True)
    assert done.returncode == 0 and "best     rank=2" in done.stdout, done.stderr
    assert "Against rank" in (folder / "compare.html").read_text()
    for words, error in (
        (["nowhere"], "nowhere: no run.json there"),
        ([folder, "metric=x"], "metric=x: these runs have"),
    ):
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {error}") and done.stderr.count("\n") == 1


def test_the_readme_names_every_sweep():
    readme = (ROOT / "README.md").read_text()
    assert all(f"sweeps={file.stem}" in readme for file in FOLDER.glob("*.yaml"))

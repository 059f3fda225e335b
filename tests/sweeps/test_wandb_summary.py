"""The W&B run of a sweep, and the panels of the W&B report."""

import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import FAKE_TRAIN_SCRIPT, ROOT, read_scores
from test_loggers import read_wandb_records

from sdft.sweeps.compare import compare_runs
from sdft.sweeps.sweep import run_sweep
from sdft.sweeps.wandb_summary import WANDB_RUN_FILE, log_sweep_summary, unify_column_type
from sdft.training import loggers

STAMP = "2026-01-01_00-00-00"


def wait_for_records(file) -> list:
    """All records, once W&B's process has written the last one."""
    deadline = time.monotonic() + 20
    while not any(record.WhichOneof("record_type") == "exit" for record in read_wandb_records(file)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return list(read_wandb_records(file))


def read_logged_run(folder) -> SimpleNamespace:
    """The newest offline run in a folder."""
    file = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))[-1]
    logged = SimpleNamespace(run=None, config={}, summary={}, history=set(), files=file.parent / "files")
    read = lambda items: {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}  # noqa: E731
    for record in wait_for_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            logged.run = record.run
            logged.config |= read(record.run.config.update)
        elif kind == "config":
            logged.config |= read(record.config.update)
        elif kind == "summary":
            logged.summary |= read(record.summary.update)
        elif kind == "history":
            logged.history |= read(record.history.item).keys()
    return logged


def read_table(run, name: str) -> dict:
    (file,) = (run.files / "media" / "table").glob(f"{name}_*.json")
    return json.loads(file.read_text())


@pytest.fixture
def fake_wandb_jobs(fake_train_script, tmp_path):
    wandb_run = "'wandb': {'id': 'x', 'project': 'mine', 'name': 'lora'}"
    (tmp_path / "train.py").write_text(FAKE_TRAIN_SCRIPT.replace("'state':", f"{wandb_run}, 'state':"))
    return fake_train_script


@pytest.mark.slow
def test_a_sweep_logs_tables_page_and_verdict(fake_wandb_jobs, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("BAD", "4")
    assert run_sweep(None, ["rank=1,2,4", "seed=0,1"]) == 1
    (folder,) = tmp_path.glob("multirun/lora/*")
    logged = read_logged_run(folder)
    assert (logged.run.run_group, logged.run.job_type) == (folder.name, "sweep")
    assert (logged.run.display_name, logged.run.project) == ("lora", "mine")
    counts = {key: logged.config[key] for key in ("jobs", "finished", "settings", "seeds", "metric")}
    assert counts == {"jobs": 6, "finished": 4, "settings": 2, "seeds": 2, "metric": "validation/loss"}
    assert logged.config["options"] == {"rank": [1, 2]}
    assert logged.summary["best"].startswith("rank=2: validation/loss 0.5000") and "cheapest" in logged.summary
    assert logged.summary["best/validation/loss"] == 0.5
    settings = read_table(logged, "settings")
    row = dict(zip(settings["columns"], settings["data"][1], strict=True))
    assert (row["setting"], row["rank"], row["seeds"], row["trainable"]) == ("rank=2", 2, 2, 10)
    assert (row["validation/loss"], row["validation/loss std"]) == (0.5, 0.0)
    runs = read_table(logged, "runs")
    assert [line[:3] for line in runs["data"]] == [["0", 1, 0], ["1", 1, 1], ["2", 2, 0], ["3", 2, 1]]
    (page,) = (logged.files / "media" / "html").glob("compare_*.html")
    assert page.read_text() == (folder / "compare.html").read_text()
    printed = capfd.readouterr()
    assert f"wandb      multirun/lora/{folder.name}/wandb/offline-run-" in printed.out and "WARNING" not in printed.err

    monkeypatch.delenv("BAD")
    assert run_sweep(None, ["rank=1,2,4", "seed=0,1"]) == 0
    resumed = read_logged_run(folder)
    assert resumed.run.run_id == logged.run.run_id == json.loads((folder / WANDB_RUN_FILE).read_text())["id"]
    assert resumed.config["finished"] == 6 and len(read_table(resumed, "settings")["data"]) == 3


@pytest.mark.slow
def test_a_sweep_that_was_not_logged_to_wandb_does_not_import_it(fake_train_script, tmp_path):
    program = "import sys; from sdft.sweeps.sweep import run_sweep; "
    program += "run_sweep(None, ['rank=1', 'seed=0']); "
    program += "sys.exit('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(f"multirun/lora/*/{WANDB_RUN_FILE}"))


def test_wandb_folders_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    for folder in ("one", "two"):  # the first run starts the W&B process that the second one uses
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        loggers.build_wandb_logger("runs", "run", mode="offline").experiment.finish()
        assert list((tmp_path / folder).glob("runs/wandb/offline-run-*/run-*.wandb"))


def test_a_wandb_error_does_not_fail_the_sweep(fake_wandb_jobs, monkeypatch, capsys):
    from wandb.errors import CommError

    def raise_error(*_, **__):
        raise CommError("no such project")

    monkeypatch.setattr(loggers, "build_wandb_logger", raise_error)
    assert run_sweep(None, ["rank=1", "seed=0"]) == 0
    assert ": no such project" in capsys.readouterr().out


def test_a_column_has_one_type():
    assert unify_column_type([1, None, 0.5]) == [1, None, 0.5]
    assert unify_column_type([None, 1, "auto"]) == [None, "1", "auto"]
    assert unify_column_type([True, [1, 2]]) == ["True", "[1, 2]"]


@pytest.mark.slow
def test_jobs_log_group_options_and_scores_and_panels_use_logged_metrics(run, tmp_path, monkeypatch):
    _, folder = run(
        "steps=2", "batch_size=8", "logger=wandb", "logger.mode=offline", "logger.project=mine", "rank=2",
        "tags=[a]", f"sweep={STAMP}", "metrics=digits", "protocol.images=2", "evaluate_every=1", "evaluate_images=1",
        "validate_every=1", "sample_every=1", name=f"{STAMP}/0",
    )  # fmt: skip
    job = read_logged_run(folder)
    assert job.run.run_group == STAMP and list(job.run.tags) == ["a"] and job.run.project == "mine"
    assert {key: job.config[key] for key in ("rank", "alpha", "lr", "method")} == {
        "rank": 2,
        "alpha": 2,
        "lr": 1e-3,
        "method": "lora",
    }
    scores = {f"evaluation/{name}": value for name, value in read_scores(folder)["fine-tuned"].items()}
    assert {name: job.summary[name] for name in scores} == pytest.approx(scores) and "evaluation/CLIP-I" in scores
    assert "evaluation/controls/drift" in job.summary

    monkeypatch.delenv("WANDB_MODE")  # offline, as the job
    monkeypatch.setattr(loggers, "is_logged_in", lambda: True)
    compare_runs([folder], tmp_path / STAMP)
    log_sweep_summary([folder], 1, tmp_path / STAMP, "rank_alpha", "CLIP-I")
    logged = read_logged_run(tmp_path / STAMP)
    assert (logged.run.run_group, logged.run.job_type, list(logged.run.tags)) == (STAMP, "sweep", ["a"])
    assert (logged.run.display_name, logged.run.project) == ("rank_alpha", "mine")
    assert logged.config["metric"] == "CLIP-I"
    assert logged.summary["best/CLIP-I"] == job.summary["evaluation/CLIP-I"] and logged.summary["best"] == "all"

    from sdft.apps.wandb_report.panels import OPTION_COLUMNS, STEP_METRIC, build_sections

    panels = {
        json.dumps(panel._to_model().model_dump()) for panels in build_sections("CLIP-I").values() for panel in panels
    }
    panels = [json.loads(text) for text in panels]
    lines = [panel["config"] for panel in panels if panel["view_type"] == "Run History Line Plot"]
    metrics = job.history | job.summary.keys()
    for line in lines:
        assert line["x_axis"] == STEP_METRIC and STEP_METRIC in job.history
        assert set(line["metrics"]) <= metrics
        assert line["metrics"] or any(re.fullmatch(line["metric_regex"], name) for name in job.history)
    media = {key for panel in panels if panel["view_type"] == "Media Browser" for key in panel["config"]["media_keys"]}
    assert all(any(name.split(".")[0] == key for name in metrics | logged.history) for key in media), media
    assert {"trainable", *OPTION_COLUMNS} <= job.config.keys()


def find_accessors(text: str) -> set[str]:
    return set(re.findall(r'"((?:config|summary):[^"]+)"', text))


def test_the_view_groups_runs_and_the_report_has_the_same_panels(monkeypatch):
    from wandb_workspaces.reports.v2 import interface

    from sdft.apps.wandb_report.panels import build_report, build_workspace

    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "1"}})
    options = {f"config:{option}.value" for option in ("method", "rank", "alpha", "lr")}
    view = build_workspace("me", "mine", None, "DINO")._to_model()
    section = view.spec.section
    (runs,) = section.run_sets
    assert [key.name for key in runs.grouping] == ["group"]
    assert runs.run_feed.column_order == [
        "run:displayName",
        *sorted(options, key=option_order),
        "summary:evaluation/DINO",
    ]
    names = [part.name for part in section.panel_bank_config.sections]
    assert names == ["Which setting", "Losses by step", "Validation", "Scores during training", "Samples"]
    assert find_accessors(view.model_dump_json()) >= options | {"config:trainable.value", "summary:evaluation/DINO"}
    kinds = [panel.view_type for part in section.panel_bank_config.sections for panel in part.panels]
    assert kinds.count("Scatter Plot") == 2 and "Parallel Coordinates Plot" in kinds and "Media Browser" in kinds

    one = build_workspace("me", "mine", STAMP, "DINO")._to_model().spec.section.run_sets[0]
    assert not one.grouping and STAMP in one.model_dump_json()
    report = build_report("me", "mine", STAMP, "DINO")._to_model()
    text = report.spec.model_dump_json()
    assert STAMP in report.display_name and STAMP in text and "95 % lower bound" in text
    assert all(name in text for name in names) and find_accessors(text) >= options


def option_order(column: str) -> int:
    return ["method", "rank", "alpha", "lr"].index(column.removeprefix("config:").removesuffix(".value"))


HIDE_WORKSPACES = (
    "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if 'workspaces' in n else find(n); "
)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("", "wandb login"),
        (HIDE_WORKSPACES, "pip install wandb-workspaces"),
    ],
    ids=["no login", "no package"],
)
def test_wandb_report_fails_in_one_line(tmp_path, setup, message):
    program = f"{setup}import runpy; runpy.run_module('sdft.apps.wandb_report.__main__', run_name='__main__')"
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_API_KEY", "HYDRA_FULL_ERROR")}
    environment |= {"NETRC": str(tmp_path / "netrc"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", program, "project=mine"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines()), list(tmp_path.iterdir())) == (1, 1, [])
    assert done.stderr.startswith("error: project=mine: ") and done.stderr.strip().endswith(message)

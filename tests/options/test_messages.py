"""What the programs print: equal columns, and hints that lead on."""

import re
import shlex

import pytest
from conftest import ROOT

from sdft.runs.resume import describe_resumption, find_last_started_run
from sdft.sweeps.jobs import Job, run_jobs
from sdft.training.next_commands import list_next_commands

LABEL = re.compile(r"""f?["']([a-z0-9]+ {2,})(?=[^ "'])""")
LABEL_WIDTH = 11


def test_labels_of_all_programs_have_one_width():
    labels = {
        f"{file.relative_to(ROOT)}: {match[1]!r}"
        for file in (ROOT / "sdft").rglob("*.py")
        for match in LABEL.finditer(file.read_text(encoding="utf-8"))
        if len(match[1]) != LABEL_WIDTH
    }
    assert not labels


@pytest.mark.parametrize("metrics", [None, "none", "digits"])
@pytest.mark.parametrize("data", ["digits", "folder"])
def test_the_next_commands_are_not_what_was_just_run(tmp_path, metrics, data):
    folder = tmp_path / "a run (1)"
    commands = list_next_commands(folder, {"data": data, "metrics": metrics})
    assert any("evaluate" in command for command in commands) == (metrics != "digits")
    assert any("data=folder" in command for command in commands) == (data == "digits")
    assert shlex.split(commands[-2 if data == "digits" else -1])[2] == f'run="{folder}"'


def test_a_stopped_job_is_resumed_by_its_sweep(tmp_path, capsys):
    assert describe_resumption(tmp_path / "run", None) == f"resume with resume={tmp_path / 'run'}"
    assert "resume=" not in describe_resumption(tmp_path / "0", "2026-01-01")

    class Interrupted:
        slots, writes_logs, receives_sigint = 1, False, True

        def start(self, job):
            raise KeyboardInterrupt

    class Source:
        total, failed = 2, []

        def next_job(self):
            return job

    job = Job(tmp_path / "0", ["rank=4"], "rank=4")
    with pytest.raises(KeyboardInterrupt):
        run_jobs(Source(), Interrupted(), ("train.py",))
    assert "resume the sweep" in capsys.readouterr().out


def test_the_run_of_resume_last_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "lora" / "1" / ".hydra").mkdir(parents=True)
    (tmp_path / "outputs" / "lora" / "1" / ".hydra" / "overrides.yaml").write_text("[]")
    run = find_last_started_run("resume")
    assert capsys.readouterr().out == f"run        {run}, which started last\n"

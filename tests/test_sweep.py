"""A sweep file becomes jobs, each a process of its own, and a table."""

import csv
import json
import sys

import pytest
import yaml
from conftest import ROOT
from test_config import checked

from sdft.compare import compare
from sdft.sweep import FOLDER, changing, jobs, read, sweep


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sweep_is_one_of_wandb_too_and_its_jobs_compose(file):
    told = yaml.safe_load(file.read_text())
    assert told["program"] == "train.py" and told["method"] == "grid" and "${args_no_hyphens}" in told["command"]
    assert file.read_text().startswith(f"# python train.py sweeps={file.stem} ")
    for job in jobs(read(file.stem), []):
        checked(*job)


def test_jobs_are_all_combinations_and_words_take_the_files_place():
    values = {"rank": [4, 8], "seed": [0, 1], "flip": [True]}
    assert jobs(values, []) == [[f"rank={r}", f"seed={s}", "flip=true"] for r in (4, 8) for s in (0, 1)]
    assert jobs(values, ["seed=7", "lr=1"]) == [[f"rank={r}", "flip=true", "seed=7", "lr=1"] for r in (4, 8)]
    assert changing(jobs(values, ["seed=7"]), 1) == ["rank=8"]


def test_a_failed_job_stops_no_other_and_is_told(tmp_path, monkeypatch, capfd):
    program = tmp_path / "train.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "words = dict(w.split('=', 1) for w in sys.argv[1:])\n"
        "folder = pathlib.Path(words['hydra.run.dir'])\n"
        "folder.mkdir(parents=True)\n"
        "facts = {'learns': {'unet': 5}, 'seconds': 2.0, 'seconds_per_step': 0.5, 'last': {'memory_gb': 1.0},"
        " 'result_mb': 3.0, 'validation_loss': [2.0, 1.0], 'device': 'cpu'}\n"
        "(folder / 'run.json').write_text(json.dumps(facts))\n"
        "sys.exit(words['method'] == 'lora')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program), "sweeps=methods"])
    assert sweep("methods", []) == 1
    told = capfd.readouterr()
    assert "1 of 2 jobs failed: method=lora" in told.err and "job      2 of 2: method=sft" in told.out
    (table,) = tmp_path.glob("multirun/methods/*/table.csv")
    assert [row["run"] for row in csv.DictReader(table.open())] == ["method=sft"]


def test_the_table_is_that_of_the_lab_report(run, capsys):  # S1-14..16
    runs = {}
    for method in ("lora", "sft"):
        _, folder = run(
            "steps=4", f"method={method}", "method.text_encoder=false", "held_out=10", "log_every=2", name=method
        )
        runs[folder] = method
        record = json.loads((folder / "run.json").read_text())
        assert 0 < record["seconds_per_step"] < record["seconds"] and record["result_mb"] > 0.1
    compare(runs, folder.parent)
    told = capsys.readouterr().out
    for column in ("learns", "seconds", "s/it", "memory GB", "file MB", "validation loss"):
        assert column in told
    assert "66,304" in told and "2,380,516" in told and "cpu (" in told and "without the first step" in told


def test_the_readme_names_every_sweep():
    readme = (ROOT / "README.md").read_text()
    assert all(f"sweeps={file.stem}" in readme for file in FOLDER.glob("*.yaml"))

"""Files are written completely or not at all."""

import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from sdft.runs import files
from sdft.runs.evaluation_history import EvaluationHistory
from sdft.runs.evaluations import read_scores
from sdft.runs.files import (
    atomic_write,
    check_name,
    check_output_path,
    check_structure,
    read_json,
    read_yaml,
    replace_folder,
)
from sdft.runs.metadata import read_data_report, read_record
from sdft.runs.resume import read_overrides
from sdft.runs.run_config import read_stored_config
from sdft.runs.samples import read_samples


def test_a_file_gets_its_name_after_it_is_written(tmp_path):
    path = tmp_path / "deep" / "a.json"
    with atomic_write(path) as file:
        file.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failure_preserves_the_existing_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "path",
    [
        "ß" * 101,  # 202 bytes
        "a" * 256 + "/run",
        "/".join(["a" * 200] * 19),
        "file/run",
        "a\0b",
    ],
)
def test_paths_that_cannot_be_written_are_refused_before_anything_is_computed(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="folder"):
        check_output_path("folder", Path(path))


def test_the_root_folder_has_no_parent_to_check():
    assert check_output_path("folder", Path("/")) == Path("/")


def test_a_file_that_is_too_large_is_called_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 3)
    (tmp_path / "large").write_text("{    }")
    for read in (partial(read_json, limit=3), read_yaml):
        with pytest.raises(ValueError, match="larger than 3 bytes"):
            read(tmp_path / "large")


def test_the_longest_accepted_name_can_be_written(tmp_path):
    name = check_name("name", "ß" * 100)
    with atomic_write(check_output_path("folder", tmp_path / name) / f"{name}-kohya.safetensors") as file:
        file.touch()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_replaced_folder_is_never_missing(failing, tmp_path, monkeypatch):
    folder, calls, rename = tmp_path / "result", [], os.replace
    folder.mkdir()
    (folder / "old").touch()

    def replace(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.replace", replace)
    with suppress(KeyboardInterrupt), replace_folder(folder) as partial:
        partial.mkdir()
        (partial / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old" if failing else "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"state": "fin', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ("[1, 2]", ".*dict is expected"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_invalid_json_is_named(tmp_path, content, message):
    file = tmp_path / "run.json"
    assert read_json(file) == {}
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"run.json: {message}"):
        read_json(file)


@pytest.mark.parametrize("content", [b"a: [b", b"5", b"\xff\xfe", None])
def test_an_unreadable_config_is_named(tmp_path, content):
    with pytest.raises(ValueError, match="config.yaml"):
        read_stored_config(tmp_path)
    for file, read, valid_yaml in (
        (tmp_path / "config.yaml", read_stored_config, b"- a"),
        (tmp_path / ".hydra" / "overrides.yaml", read_overrides, b"a: b"),
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(valid_yaml if content is None else content)
        with pytest.raises(ValueError, match=f"{file}: "):
            read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"state": "finished", "overr', "not valid JSON"),
        ("{}", "has no format version.*reads format version 1"),
        ("[]", "dict is expected"),
        ('{"format": 2, "state": "finished"}', "has format version 2.*reads format version 1"),
        ('{"format": true, "state": "finished"}', "has format version True"),
        ('{"format": 1}', "state is missing"),
        ('{"format": 1, "state": "flying"}', "unknown state"),
        ('{"format": 1, "state": "finished", "overrides": "rank=4"}', "list is expected"),
    ],
)
def test_every_reader_names_an_unreadable_run_json(tmp_path, content, message):
    from omegaconf import OmegaConf

    from sdft.apps.generate.axes import label_runs_by_overrides
    from sdft.runs import reproduce, resume
    from sdft.runs.newest_run import find_newest_run
    from sdft.sweeps import results

    run = tmp_path / "lora" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text(content)
    readers = [
        lambda: resume.read_overrides(run),
        lambda: reproduce.check_reproducible(OmegaConf.create({"reproduce": str(run)})),
        lambda: results.read_finished_run(run),
        lambda: find_newest_run(tmp_path),
        lambda: label_runs_by_overrides([run]),
    ]
    for read in readers:
        with pytest.raises(ValueError, match=rf"^[^\n]*one/run.json: .*{message}[^\n]*$"):
            read()


def test_every_json_file_of_a_run_is_checked(tmp_path):
    readers = {
        "data.json": (read_data_report, {"frequent words": [1]}),
        "samples.json": (read_samples, [{"file": "../a.png", "prompt": "x", "seed": 0}]),
        "timeline.json": (lambda folder: EvaluationHistory(folder).read_entries(), [{"step": 1}]),
        "scores.json": (read_scores, {"schema": 1}),
    }
    for name, (read, edited) in readers.items():
        for content in ("{", "5", json.dumps(edited)):
            (tmp_path / name).write_text(content)
            with pytest.raises(ValueError, match=rf"^[^\n]*{name}: [^\n]*$"):
                read(tmp_path)


def test_required_keys_of_a_record_are_named(tmp_path):
    (tmp_path / "run.json").write_text('{"format": 1, "state": "finished"}')
    assert read_record(tmp_path)["state"] == "finished"
    with pytest.raises(ValueError, match="run.json: options is missing"):
        read_record(tmp_path, "options")
    with pytest.raises(ValueError, match="not a run folder"):
        read_record(tmp_path / "nowhere")


def test_yaml_is_plain_data(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: ${oc.env:HOME}\nb: 1.0e-05")
    assert read_yaml(file) == {"a": "${oc.env:HOME}", "b": 1e-5}
    for text in ("a: !!python/object/apply:os.mkdir [boom]", "a: &x [1]\nb: [*x, *x]", "- 1", "5"):
        file.write_text(text)
        with pytest.raises(ValueError, match="a.yaml: "):
            read_yaml(file)


def test_a_structure_is_checked_to_its_leaves():
    check_structure({"a": [1, 2], "c": {"x": 1.5}}, {"a": [int], "b?": str, "c": {"*": (int, float)}}, "f")
    for value in (
        {"a": [1, "2"]},
        {"a": [True]},
        {"a": None},
        {"c": {}},
        {"a": [], "c": {"x": "y"}},
        {"a": [], "c": {}, "b": 1},
    ):
        with pytest.raises(ValueError, match="^f: "):
            check_structure(value, {"a": [int], "b?": str, "c": {"*": (int, float)}}, "f")

"""Files are written completely or not at all."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from sdft.runs.files import atomic_write, check_name, check_output_path, read_config, read_json, replace_folder
from sdft.runs.resume import read_overrides


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
        ("[1, 2]", "not a JSON object"),
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
        read_config(tmp_path)
    for file, read, valid_yaml in (
        (tmp_path / "config.yaml", read_config, b"- a"),
        (tmp_path / ".hydra" / "overrides.yaml", read_overrides, b"a: b"),
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(valid_yaml if content is None else content)
        with pytest.raises(ValueError, match=f"{file}: "):
            read(tmp_path)


def test_every_reader_names_a_truncated_run_json(tmp_path):
    from omegaconf import OmegaConf

    from sdft.apps.generate.axes import label_runs_by_overrides
    from sdft.evaluation.request import find_newest_run
    from sdft.runs import reproduce, resume
    from sdft.sweeps import results

    run = tmp_path / "lora" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"state": "finished", "overr')
    readers = [
        lambda: resume.read_overrides(run),
        lambda: reproduce.check_reproducible(OmegaConf.create({"reproduce": str(run)})),
        lambda: results.read_finished_run(run),
        lambda: find_newest_run(tmp_path),
        lambda: label_runs_by_overrides([run]),
    ]
    for read in readers:
        with pytest.raises(ValueError, match="one/run.json: "):
            read()

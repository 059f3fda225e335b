"""Files appear whole or not at all."""

import pytest

from sdft.runs.files import atomic_write, read_config, read_json
from sdft.runs.resume import read_overrides


def test_a_file_takes_its_name_only_when_it_is_written(tmp_path):
    path = tmp_path / "deep" / "a.json"
    with atomic_write(path) as file:
        file.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failure_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"state": "fin', "not a file of JSON"),
        (b"\xff\xfe", "not a file of JSON"),
        ("[1, 2]", "not an object of JSON"),
    ],
)
def test_a_file_that_is_cut_off_or_another_is_named(tmp_path, content, told):
    file = tmp_path / "run.json"
    assert read_json(file) == {}
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"run.json: {told}"):
        read_json(file)


@pytest.mark.parametrize("content", [b"a: [b", b"5", b"\xff\xfe", None])
def test_words_of_a_run_that_cannot_be_read_are_named(tmp_path, content):
    with pytest.raises(ValueError, match="not a run folder"):
        read_config(tmp_path)
    for file, read, other in (
        (tmp_path / "config.yaml", read_config, b"- a"),
        (tmp_path / ".hydra" / "overrides.yaml", read_overrides, b"a: b"),
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(other if content is None else content)
        with pytest.raises(ValueError, match=f"{file}: not the words of a run; it is cut off, or was changed"):
            read(tmp_path)


def test_a_run_whose_record_is_cut_off_is_named_by_whoever_reads_it(tmp_path):
    from omegaconf import OmegaConf

    from sdft.apps.generate.axes import label_runs_by_overrides
    from sdft.evaluation.request import find_newest_run
    from sdft.runs import reproduce as repeat
    from sdft.runs import resume
    from sdft.sweeps import results

    run = tmp_path / "lora" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"state": "finished", "overr')
    readers = [
        lambda: resume.read_overrides(run),
        lambda: repeat.check_reproducible(OmegaConf.create({"reproduce": str(run)})),
        lambda: results.read_finished_run(run),
        lambda: find_newest_run(tmp_path),
        lambda: label_runs_by_overrides([run]),
    ]
    for reads in readers:
        with pytest.raises(ValueError, match="one/run.json: not a file of JSON"):
            reads()

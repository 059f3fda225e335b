"""Data and base weights that changed between a stop and `resume` are named, and refused unless they are allowed."""

import json
from types import SimpleNamespace

import pytest
from conftest import save_images

from sdft.data.digits import Digits
from sdft.data.image_folder import ImageFolder
from sdft.data.transforms import CaptionTemplate
from sdft.runs.data_index import INDEX_FILE, build_data_index, describe_input_changes, write_data_index
from sdft.runs.hashing import hash_dataset
from sdft.runs.resume import PreviousRun
from sdft.training.inputs import RunInputs

DIGESTS = {"model": "m"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A function that changes a folder of four images and says what differs from a run that was recorded before."""
    monkeypatch.chdir(tmp_path)
    folder = save_images(Digits(per_digit=1), tmp_path / "images", 4, captions=True)
    record_run(tmp_path / "run", folder)
    return folder


def read_source(folder):
    return ImageFolder(str(folder))


def record_run(run, folder):
    run.mkdir()
    write_data_index(run, build_data_index({"": read_source(folder)}))
    digests = {**DIGESTS, "data": hash_dataset(read_source(folder))}
    (run / "run.json").write_text(json.dumps({"format": 1, "state": "finished", "digests": digests}))


def describe_changes(folder, **digests) -> str | None:
    source = read_source(folder)
    digests = {**DIGESTS, "data": hash_dataset(source), **digests}
    return describe_input_changes(folder.parent / "run", build_data_index({"": source}), digests)


def change_everything(folder):
    for number in (7, 8):
        (folder / f"{number}.png").write_bytes((folder / "3.png").read_bytes())
        (folder / f"{number}.txt").write_text("an image more")
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes((folder / "3.png").read_bytes())
    (folder / "2.txt").write_text("another caption, with commas\u2028")


def test_added_removed_changed_and_recaptioned_images_are_counted_and_named(data):
    assert describe_changes(data) is None
    change_everything(data)
    expected = "1 removed (0.png), 2 added (7.png, 8.png), 1 changed (1.png), 1 with other captions (2.png)"
    assert describe_changes(data) == f"images: {expected}"
    for number in range(10, 20):
        (data / f"{number}.png").write_bytes((data / "3.png").read_bytes())
        (data / f"{number}.txt").write_text("more")
    assert "12 added (10.png, 11.png, 12.png and 9 more)" in describe_changes(data)


def test_masks_class_images_and_base_weights_count(data):
    (data / "2.mask.png").write_bytes((data / "3.png").read_bytes())
    assert describe_changes(data) == "images: 1 changed (2.png)"
    (data / "2.mask.png").unlink()
    assert describe_changes(data) is None
    assert describe_changes(data, model="n") == "other base weights"
    index = build_data_index({"": read_source(data), "class image ": CaptionTemplate(read_source(data), "a dog")})
    changes = describe_input_changes(data.parent / "run", index, DIGESTS)
    assert changes.startswith("images: 4 added (class image 0.png, ")


def test_without_an_index_the_digest_decides_and_a_damaged_one_never_passes(data):
    run = data.parent / "run"
    content = (run / INDEX_FILE).read_bytes()
    (run / INDEX_FILE).write_bytes(content[:40] + b"\xff" + content[41:])
    assert describe_changes(data)
    (run / INDEX_FILE).unlink()
    assert describe_changes(data) is None
    (data / "2.txt").write_text("another caption")
    assert INDEX_FILE in describe_changes(data)


@pytest.mark.parametrize("option", ["resume", "reproduce"])
def test_changed_data_is_refused_unless_it_is_allowed_or_chosen(data, option):
    run = data.parent / "run"

    def start(changed=(), **options):
        previous = PreviousRun({}, dict.fromkeys(changed, (1, 2)), 0) if option == "resume" else None
        digests = {**DIGESTS, "data": "d"}
        inputs = RunInputs(None, None, None, [], 1, 1, None, 0, previous, digests)
        cfg = SimpleNamespace(**{"allow_data_change": False, "reproduce": str(run)} | options)
        inputs.index_data(cfg, run, read_source(data), None)
        return previous.changed if previous else inputs.data_index

    start()
    change_everything(data)
    with pytest.raises(ValueError, match=rf"{option}=.*/run: .*1 removed \(0\.png\).*allow_data_change=true"):
        start()
    changed = start(allow_data_change=True)
    if option == "resume":
        assert "2 added" in changed["data"][1] and "2 added" in start(["data.path"])["data"][1]
        with pytest.raises(ValueError, match="allow_data_change=true"):
            start(["lr"])


@pytest.mark.slow
def test_a_resumed_run_names_changed_data_and_records_that_it_was_allowed(run, tmp_path, capsys):
    folder = save_images(Digits(per_digit=2), tmp_path / "images", 4, captions=True)
    overrides = ["data=folder", f"data.path={folder}", "resolution=32", "rank=2", "sample_every=0"]
    _, original = run(*overrides, "steps=2")
    change_everything(folder)
    resumed = [*overrides, "steps=3", "allow_config_change=true", f"resume={original}"]
    with pytest.raises(ValueError, match=r"resume=.*1 removed .*allow_data_change=true"):
        run(*resumed)
    assert json.loads((original / "run.json").read_text())["resumed"] == []
    run(*resumed, "allow_data_change=true")
    assert "changed    data from " in capsys.readouterr().out
    [entry] = json.loads((original / "run.json").read_text())["resumed"]
    assert "2 added" in entry["changed"]["data"][1]
    with pytest.raises(ValueError, match=r"reproduce=.*: .*data"):
        run(*overrides, "steps=3", f"reproduce={original}", name="again")

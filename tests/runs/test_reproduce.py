"""A run can be done again, and says whether it came to the same."""

import json
import subprocess
import sys

import pytest
from conftest import QUICK_OVERRIDES, ROOT

from sdft.runs.hashing import hash_dataset, hash_weights
from sdft.runs.metadata import read_commit
from sdft.runs.reproduce import compare_bitwise

FEW = ["data.per_digit=2", "data.digits=[0,1,2]", "rank=2", "steps=3", "sample_every=2", "ema=0.9", "log_every=1"]
BASE = "model.weights=pretrained"  # random ones follow from the seed


def test_a_repeated_run_comes_to_the_same_or_tells_what_differs(run, capsys):
    _, folder = run(*FEW, BASE, name="one")
    run(*FEW, BASE, f"reproduce={folder}", name="two")
    assert f"repeat   bit-identical to {folder}" in capsys.readouterr().out
    record = json.loads((folder.parent / "two" / "run.json").read_text())
    assert record["state"] == "finished" and record["reproduces"] == {"run": str(folder), "identical": True}

    with pytest.raises(ValueError, match=r"reproduce=.*: lr is another; give no other words, or train without repeat"):
        run(*FEW, BASE, "lr=0.5", f"reproduce={folder}", name="three")
    _, other = run(*FEW, BASE, "seed=1", name="other")
    same, lines = compare_bitwise(folder, other)
    assert not same and lines[0].startswith("weights: ") and lines[1].startswith("averaged weights: ")
    assert (
        lines[2].startswith("metrics: ")
        and " at step 0 is " in lines[2]
        and lines[3].startswith("samples: samples/step-0000")
    )
    assert lines[-1] == "nothing else that is known differs: this device computes otherwise each time"
    facts = json.loads((other / "run.json").read_text())
    facts["versions"]["torch"] = "1.0"
    (other / "run.json").write_text(json.dumps(facts | {"state": "failed"}))
    assert compare_bitwise(folder, other)[1][-1].startswith("versions: ")
    with pytest.raises(ValueError, match=r"reproduce=.*: did not finish \(failed\); resume=.* goes on with it"):
        run(*FEW, BASE, f"reproduce={other}", name="four")


def test_a_run_says_what_it_was_made_of(run, tiny):
    _, folder = run(*FEW, name="one")
    record = json.loads((folder / "run.json").read_text())
    assert set(record["digests"]) == {"model", "data"} and all(len(d) == 16 for d in record["digests"].values())
    assert record["digests"]["model"] == hash_weights(tiny(0))
    assert record["started"] <= record["ended"] and "steps=3" in record["overrides"]
    _, other = run(*[*FEW[:-2], "data.per_digit=3"], name="two")
    again = json.loads((other / "run.json").read_text())["digests"]
    assert again["model"] == record["digests"]["model"] and again["data"] != record["digests"]["data"]


def test_the_digest_of_data_is_of_pictures_captions_and_order(photographs, tmp_path):
    import shutil

    from sdft.data.image_folder import ImageFolder

    place = tmp_path / "photographs"
    shutil.copytree(photographs, place)
    before = hash_dataset(ImageFolder(str(place)))
    assert hash_dataset(ImageFolder(str(photographs))) == before
    (place / "cat.txt").write_text("a photo of the cat")
    assert hash_dataset(ImageFolder(str(place))) != before


def test_changes_that_are_not_committed_are_kept_beside_the_run(tmp_path):
    """In a clone of its own: this one may be clean or not."""
    git = ["git", "-C", str(tmp_path / "clone"), "-c", "user.name=a", "-c", "user.email=a"]
    (tmp_path / "clone" / "sdft").mkdir(parents=True)
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "clone" / "sdft" / "record.py").write_text((ROOT / "sdft" / "record.py").read_text())
    (tmp_path / "clone" / "train.py").write_text("1\n")
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    program = (
        "import importlib.util as u, pathlib; s = u.spec_from_file_location('r', 'sdft/record.py'); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.commit(pathlib.Path('changes.diff').resolve()))"
    )

    def told() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, cwd=tmp_path / "clone", capture_output=True, text=True, check=True
        ).stdout.strip()

    assert told().isalnum() and not (tmp_path / "clone" / "changes.diff").exists()
    (tmp_path / "clone" / "train.py").write_text("2\n")
    assert told().endswith("+") and "+2" in (tmp_path / "clone" / "changes.diff").read_text()
    assert read_commit(tmp_path / "changes.diff")


def test_repeat_takes_the_words_of_the_run(tmp_path):
    words = [*QUICK_OVERRIDES, *FEW, "hydra.run.dir=outputs/lora/1"]
    command = [sys.executable, str(ROOT / "train.py")]
    subprocess.run([*command, *words], cwd=tmp_path, check=True, timeout=300, stdout=subprocess.DEVNULL)
    done = subprocess.run([*command, "reproduce=last"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "repeat   bit-identical to outputs/lora/1" in done.stdout, done.stderr
    assert len(list(tmp_path.glob("outputs/lora/*/adapter"))) == 2

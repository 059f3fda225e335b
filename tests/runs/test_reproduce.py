"""A run can be reproduced, and reports whether the results are bit-identical."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK_OVERRIDES, ROOT
from forked import run_forked

from sdft.runs.hashing import hash_dataset, hash_weights
from sdft.runs.metadata import read_commit
from sdft.runs.reproduce import compare_bitwise

OVERRIDES = ["data.per_digit=2", "data.digits=[0,1,2]", "rank=2", "steps=3", "sample_every=2", "ema=0.9", "log_every=1"]
BASE = "model.weights=pretrained"  # random weights depend on the seed


def test_a_reproduced_run_is_bit_identical_or_lists_the_differences(run, capsys):
    _, folder = run(*OVERRIDES, BASE, name="one")
    run(*OVERRIDES, BASE, f"reproduce={folder}", name="two")
    assert f"bit-identical to {folder}" in capsys.readouterr().out
    record = json.loads((folder.parent / "two" / "run.json").read_text())
    assert record["state"] == "finished" and record["reproduces"] == {"run": str(folder), "identical": True}

    with pytest.raises(ValueError, match=r"reproduce=.*: lr "):
        run(*OVERRIDES, BASE, "lr=0.5", f"reproduce={folder}", name="three")
    _, other = run(*OVERRIDES, BASE, "seed=1", name="other")
    same, lines = compare_bitwise(folder, other)
    assert not same and lines[0].startswith("weights: ") and lines[1].startswith("EMA weights: ")
    assert (
        lines[2].startswith("metrics: ")
        and " at step 0 is " in lines[2]
        and lines[3].startswith("samples: samples/step-0000")
    )
    assert len(lines) == 5 and "not deterministic" in lines[-1]
    metadata = json.loads((other / "run.json").read_text())
    metadata["versions"]["torch"] = "1.0"
    (other / "run.json").write_text(json.dumps(metadata | {"state": "failed"}))
    assert compare_bitwise(folder, other)[1][-1].startswith("versions: ")
    with pytest.raises(ValueError, match=r"reproduce=.*\(failed\).* resume="):
        run(*OVERRIDES, BASE, f"reproduce={other}", name="four")


@pytest.mark.slow
def test_the_record_has_digests_of_the_model_and_the_data(run, tiny):
    _, folder = run(*OVERRIDES, name="one")
    record = json.loads((folder / "run.json").read_text())
    assert set(record["digests"]) == {"model", "data"} and all(len(d) == 16 for d in record["digests"].values())
    assert record["digests"]["model"] == hash_weights(tiny(0))
    assert record["started"] <= record["ended"] and "steps=3" in record["overrides"]
    _, other = run(*[*OVERRIDES[:-2], "data.per_digit=3"], name="two")
    digests = json.loads((other / "run.json").read_text())["digests"]
    assert digests["model"] == record["digests"]["model"] and digests["data"] != record["digests"]["data"]


def test_the_data_digest_covers_images_and_captions(photographs, tmp_path):
    import shutil

    from sdft.data.image_folder import ImageFolder

    folder = tmp_path / "photographs"
    shutil.copytree(photographs, folder)
    before = hash_dataset(ImageFolder(str(folder)))
    assert hash_dataset(ImageFolder(str(photographs))) == before
    (folder / "cat.txt").write_text("a photo of the cat")
    assert hash_dataset(ImageFolder(str(folder))) != before


def test_uncommitted_changes_are_saved_in_the_run_folder(tmp_path):
    """In a new repository: this one may have changes or not."""
    git = ["git", "-C", str(tmp_path / "clone"), "-c", "user.name=a", "-c", "user.email=a"]
    (tmp_path / "clone" / "sdft" / "runs").mkdir(parents=True)
    subprocess.run([*git, "init", "-q"], check=True)
    module = Path("sdft", "runs", "metadata.py")
    (tmp_path / "clone" / module).write_text((ROOT / module).read_text())
    (tmp_path / "clone" / "train.py").write_text("1\n")
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    program = (
        "import importlib.util as u, pathlib; s = u.spec_from_file_location('r', 'sdft/runs/metadata.py'); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.read_commit(pathlib.Path('changes.diff').resolve()))"
    )

    def read_commit_in_clone() -> str:
        command = [sys.executable, "-c", program]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}  # the clone has no other modules
        return subprocess.run(
            command, cwd=tmp_path / "clone", env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert read_commit_in_clone().isalnum() and not (tmp_path / "clone" / "changes.diff").exists()
    (tmp_path / "clone" / "train.py").write_text("2\n")
    assert read_commit_in_clone().endswith("+") and "+2" in (tmp_path / "clone" / "changes.diff").read_text()
    assert read_commit(tmp_path / "changes.diff")


@pytest.mark.slow
def test_reproduce_uses_the_overrides_of_the_run(tmp_path):
    overrides = [*QUICK_OVERRIDES, *OVERRIDES, "hydra.run.dir=outputs/lora/1"]
    run_forked(*overrides, cwd=tmp_path)
    assert "bit-identical to outputs/lora/1" in run_forked("reproduce=last", cwd=tmp_path).stdout
    assert len(list(tmp_path.glob("outputs/lora/*/adapter"))) == 2

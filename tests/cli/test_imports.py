"""Programs import only what they use, and garbage collection is paused only while they import."""

import gc
import subprocess
import sys

import pytest
from conftest import ROOT

from sdft.cli.imports import pause_garbage_collection

SLOW = {"torch", "lightning", "diffusers", "transformers", "peft", "wandb", "PIL", "numpy", "matplotlib", "sklearn"}
OPTIONAL = {"wandb", "open_clip", "pandas", "sklearn", "timm", "tensorboard", "datasets", "cv2", "av", "ray", "optuna"}
PRINT_MODULES = """
import atexit, sys
sys.argv = ["train.py", *sys.argv[1:]]
atexit.register(lambda: print("modules", *{name.partition(".")[0] for name in sys.modules}))
from sdft.apps.train import main
main()
"""


def list_imported_packages(cwd, *arguments: str) -> set[str]:
    """Packages that `train.py` with these arguments imports until it ends."""
    command = [sys.executable, "-c", PRINT_MODULES, *arguments]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_help_imports_no_slow_library(tmp_path):
    assert not SLOW & list_imported_packages(tmp_path, "--help")


@pytest.mark.slow
def test_a_run_imports_no_library_of_options_that_are_off(tmp_path):
    overrides = ["steps=1", "logger=none", "metrics=none", "sampling.steps=1", "validate_every=0"]
    assert not OPTIONAL & list_imported_packages(tmp_path, *overrides)


def test_garbage_collection_is_resumed_after_imports_and_errors():
    assert gc.isenabled()
    try:
        with pause_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count() > 1000
        with pytest.raises(ValueError), pause_garbage_collection():
            raise ValueError
        assert gc.isenabled()
    finally:
        gc.unfreeze()

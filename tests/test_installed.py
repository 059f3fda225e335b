"""The wheel holds all that a run needs: configs, sweeps, embedded models, pages."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import QUICK_OVERRIDES, ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs a program of the installed package, far from the repository."""
    home = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(ROOT, home / "source", ignore=shutil.ignore_patterns(".git", ".venv", "build", "outputs"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", home / "wheel", source], check=True)
    (wheel,) = (home / "wheel").glob("sdft-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", home / "site", wheel], check=True)
    shutil.rmtree(source)
    environment = os.environ | {"PYTHONPATH": str(home / "site")}

    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "sdft", *arguments]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_installed_package_trains_and_generates(installed):
    assert "generate" in installed("--help")
    output = installed("train", *QUICK_OVERRIDES, "steps=2")
    assert "adapter/" in output
    assert ".png" in installed("generate", "steps=1", "accelerator=cpu")


def test_the_installed_package_knows_its_choices_and_sweeps(installed):
    page = installed("train", "--help")
    assert "textual_inversion" in page and "homework_faces" in page
    assert "rank_alpha" in installed("train", "sweeps=nothing", status=1)

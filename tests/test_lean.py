"""What starts a run does not import what no run asks for, and whoever needs it later gets it."""

import subprocess
import sys

import pytest
from conftest import ROOT

ASKED = """
import sys
import sdft.lean as lean
lean.start(); lean.start()
import lightning, torchmetrics
seen = [name for name in ("scipy", "matplotlib", "torchvision", "transformers", "bitsandbytes", "sklearn") if name in sys.modules]
assert not seen, seen
from diffusers import UNet2DConditionModel
import peft
assert "bitsandbytes" not in sys.modules
assert torchmetrics.__spec__.loader is torchmetrics.__loader__ and not isinstance(torchmetrics.__loader__, lean.Lean)
from torchmetrics.utilities.imports import _SCIPY_AVAILABLE, _TORCHVISION_AVAILABLE
assert _SCIPY_AVAILABLE and _TORCHVISION_AVAILABLE
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
import scipy, matplotlib, torchvision
"""


def test_libraries_are_imported_without_what_no_run_asks_for():
    subprocess.run([sys.executable, "-c", ASKED], cwd=ROOT, check=True)


def test_what_is_hidden_is_hidden_only_there(monkeypatch):
    from importlib.util import find_spec

    from sdft.lean import hidden

    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with hidden("colorsys", "sys"):
        assert find_spec("colorsys") is None and find_spec("sys")
        with pytest.raises(ImportError):
            import colorsys
    import colorsys

    assert colorsys.rgb_to_hls

"""What starts a run does not import what no run asks for, and whoever needs it later gets it."""

import subprocess
import sys

import pytest
from conftest import ROOT

ASKED = """
import gc, sys
import sdft.lean as lean
often = gc.get_threshold()
lean.start(); lean.start()
assert gc.get_threshold()[0] > often[0]
import lightning, torchmetrics
seen = [name for name in ("scipy", "matplotlib", "torchvision", "transformers", "bitsandbytes", "sklearn") if name in sys.modules]
assert not seen, seen
from diffusers import UNet2DConditionModel
import peft
assert "bitsandbytes" not in sys.modules
assert torchmetrics.__spec__.loader is torchmetrics.__loader__ and not isinstance(torchmetrics.__loader__, lean.Lean)
from sdft.loading import load
load("tiny-sd")
assert gc.get_threshold() == often
from wandb.util import is_pandas_data_frame
assert not is_pandas_data_frame([1]) and "pandas" not in sys.modules
assert not [name for name in sys.modules if name.startswith(("torch.distributed.tensor", "torch.nn.attention.flex_attention"))]
from diffusers import DPMSolverMultistepScheduler, LMSDiscreteScheduler
assert not [name for name in sys.modules if name.startswith(("scipy.optimize", "scipy.stats", "scipy.integrate"))]
import diffusers.utils.import_utils, transformers.models, transformers.utils.import_utils
known = diffusers.utils.import_utils._package_map
assert "made" not in vars(known)
assert known.get("PIL") == ["pillow"] and "nope" not in known
read = transformers.utils.import_utils.create_import_structure_from_path.cache_info()
assert read.misses == read.currsize, read
from transformers.loss.loss_for_object_detection import center_to_corners_format, linear_sum_assignment
import torch
assert linear_sum_assignment(torch.eye(2))[1].tolist() == [1, 0]
assert center_to_corners_format(torch.tensor([[0.5, 0.5, 1, 1]])).tolist() == [[0, 0, 1, 1]]
sampler = DPMSolverMultistepScheduler(use_beta_sigmas=True)
sampler.set_timesteps(4)
assert len(sampler.sigmas) == 5 and "scipy.stats" in sys.modules
linear = LMSDiscreteScheduler()
linear.set_timesteps(4)
noise = torch.ones(1, 4, 2, 2)
linear.step(noise, linear.timesteps[0], linear.step(noise, linear.timesteps[0], noise).prev_sample)
from transformers.image_transforms import resize
import diffusers.models.attention_dispatch as attention, torch.nn.attention.flex_attention
assert attention.flex_attention.BlockMask is torch.nn.attention.flex_attention.BlockMask
import pandas
assert is_pandas_data_frame(pandas.DataFrame())
from scipy.optimize import minimize
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


def test_what_is_postponed_is_there_for_who_calls_it_and_for_who_takes_something_else(monkeypatch):
    from sdft.lean import postponed

    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with postponed({"colorsys": ["rgb_to_hls"]}):
        from colorsys import rgb_to_hls

        assert sys.modules["colorsys"].__spec__ is None
    assert "colorsys" not in sys.modules and rgb_to_hls(1, 1, 1) == (0, 1, 0)
    monkeypatch.delitem(sys.modules, "colorsys")
    with postponed({"colorsys": ["rgb_to_hls"]}):
        from colorsys import rgb_to_hls, rgb_to_hsv

        real = sys.modules["colorsys"]
        assert real.__spec__ and rgb_to_hsv is real.rgb_to_hsv and rgb_to_hls(1, 1, 1) == (0, 1, 0)
        with pytest.raises(ImportError, match="nothing"):
            exec("from colorsys import nothing")
    assert sys.modules["colorsys"] is real

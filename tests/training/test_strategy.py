"""Devices and precisions that cannot work are refused before a model is loaded."""

import pytest
import torch

from sdft.training.precision import Precision
from sdft.training.strategy import Strategy


def test_on_a_cpu_auto_is_one_device():
    facts = Strategy(accelerator="cpu").trainer()
    assert (facts["accelerator"], facts["devices"], facts["strategy"]) == ("cpu", 1, "auto")
    assert Strategy("ddp", "cpu", 2).trainer()["devices"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="accelerator=gpu: torch finds none on this machine"):
        Strategy(accelerator="gpu").trainer()


@pytest.mark.parametrize(("key", "value"), {"name": "fast", "accelerator": "tpu", "devices": 0, "num_nodes": 0}.items())
def test_bad_words_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}: choose"):
        Strategy(**{key: value})


def test_fp16_on_a_cpu_is_refused():
    Precision("float16").check_accelerator("gpu")
    with pytest.raises(ValueError, match="precision=fp16: CPUs cannot train in it; choose fp32 or bf16"):
        Precision("float16").check_accelerator("cpu")


def test_tf32_is_what_it_says():
    for tf32, precision in ((True, "high"), (False, "highest")):
        Precision(tf32=tf32).configure_tf32()
        assert torch.get_float32_matmul_precision() == precision and torch.backends.cudnn.allow_tf32 is tf32

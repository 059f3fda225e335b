"""Unavailable devices and precisions are refused before a model is loaded."""

import pytest
import torch

from sdft.distributed import count_cpu_cores
from sdft.training.precision import Precision
from sdft.training.strategy import Strategy


def test_on_a_cpu_auto_is_one_device():
    kwargs = Strategy(accelerator="cpu").trainer_kwargs()
    assert (kwargs["accelerator"], kwargs["devices"], kwargs["strategy"]) == ("cpu", 1, "auto")
    assert Strategy("ddp", "cpu", 2).trainer_kwargs()["devices"] == 2


def test_ddp_keeps_gradients_in_its_buckets(monkeypatch):
    monkeypatch.setattr("lightning.pytorch.strategies.DDPStrategy", lambda **options: options)
    options = Strategy("ddp", "cpu", 2).build_lightning_strategy()
    assert options == {"broadcast_buffers": False, "gradient_as_bucket_view": True}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_refused():
    with pytest.raises(ValueError, match="accelerator=gpu: "):
        Strategy(accelerator="gpu").trainer_kwargs()


@pytest.mark.parametrize(("key", "value"), {"name": "fast", "accelerator": "tpu", "devices": 0, "num_nodes": 0}.items())
def test_invalid_options_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}: choose"):
        Strategy(**{key: value})


def test_fp16_without_gradient_scaling_is_refused():
    Precision("float16").check_device(torch.device("cuda:0"))
    for device in ("cpu", "mps"):
        with pytest.raises(ValueError, match="precision=fp16: "):
            Precision("float16").check_device(torch.device(device))
        Precision("bfloat16").check_device(torch.device(device))


def test_an_apple_gpu_is_used_unless_the_cpu_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for accelerator, device in {"auto": "mps", "gpu": "mps", "cpu": "cpu"}.items():
        strategy = Strategy(accelerator=accelerator)
        assert strategy.device() == torch.device(device) and strategy.processes_per_node() == 1
        assert (
            strategy.trainer_kwargs()["accelerator"] == accelerator
        )  # Lightning's auto and gpu are the Apple GPU, too
    with pytest.raises(ValueError, match="devices=2: "):
        Strategy(devices=2).trainer_kwargs()


def test_tf32_is_what_it_says():
    for tf32, precision in ((True, "high"), (False, "highest")):
        Precision(tf32=tf32).configure_tf32()
        assert torch.get_float32_matmul_precision() == precision and torch.backends.cudnn.allow_tf32 is tf32


def test_more_processes_than_cores_are_refused_on_a_cpu():
    cores = count_cpu_cores()
    with pytest.raises(ValueError, match=f"devices={cores + 1}: only {cores} CPU cores"):
        Strategy(accelerator="cpu", devices=cores + 1).count_processes_to_launch()
    assert Strategy(accelerator="cpu", devices=cores).count_processes_to_launch() == (cores if cores > 1 else 0)

"""`precision=auto`: bf16 and TF32 on a GPU that computes them, fp32 elsewhere; a resumed run keeps its own."""

import json

import pytest
import torch
import yaml
from conftest import compose_config
from hydra.utils import instantiate

from sdft.training.precision import Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(params=[True, False], ids=["bf16", "no bf16"])
def has_bf16(request, monkeypatch):
    """A GPU with bf16, and one that only emulates it."""
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation or request.param
    )
    return request.param


def test_auto_is_bf16_on_a_gpu_that_computes_it(has_bf16):
    auto = instantiate(compose_config().precision)
    assert auto.resolve(GPU) == Precision("bfloat16" if has_bf16 else "float32", tf32=True)
    assert auto.resolve(CPU) == auto.resolve(torch.device("mps")) == Precision("float32", tf32=False)
    assert compose_config().optimizer.fused


def test_given_values_win(has_bf16):
    assert instantiate(compose_config("precision.tf32=false").precision).resolve(GPU).tf32 is False
    for name in ("fp32", "bf16", "fp16"):
        precision = instantiate(compose_config(f"precision={name}").precision)
        assert precision.resolve(GPU) == precision and precision.name == name and precision.tf32 is False


def test_a_resumed_or_reproduced_run_has_the_precision_of_its_folder(has_bf16, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"precision": {"compute_dtype": "bfloat16", "tf32": True}}))
    for option in ("resume", "reproduce"):
        cfg = compose_config(f"{option}={tmp_path}")
        assert instantiate(cfg.precision).resolve_in_config(cfg, CPU) == Precision("bfloat16", tf32=True)
        assert cfg.precision.compute_dtype == "bfloat16" and cfg.precision.tf32 is True
    cfg = compose_config()
    assert instantiate(cfg.precision).resolve_in_config(cfg, GPU).name == ("bf16" if has_bf16 else "fp32")


def test_a_run_records_what_was_chosen(run):
    _, folder = run("steps=1")
    stored = yaml.safe_load((folder / "config.yaml").read_text())["precision"]
    assert (stored["compute_dtype"], stored["tf32"]) == ("float32", False)
    record = json.loads((folder / "run.json").read_text())
    assert record["choices"]["precision"] == record["options"]["precision"] == "fp32"

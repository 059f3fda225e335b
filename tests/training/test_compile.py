"""Compilation and memory format change losses only by rounding errors, and no saved file."""

import copy
import json
import shutil

import pytest
import torch

import sdft.training.compile as compilation
from sdft.models.embedded import ASSETS_FOLDER
from sdft.training.compile import (
    compile_blocks,
    find_missing_compiler,
    remove_compiled_forwards,
    set_channels_last,
    should_compile,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_compiles_long_runs_on_a_gpu(monkeypatch):
    monkeypatch.setattr(compilation, "find_missing_compiler", lambda device: None)
    assert [should_compile("auto", GPU, steps) for steps in (999, 1000)] == [False, True]
    assert not should_compile("auto", CPU, 10**6)
    assert should_compile("regional", CPU, 1) and not should_compile("off", CPU, 10**6)
    monkeypatch.setattr(compilation, "find_missing_compiler", lambda device: "a C++ compiler, such as g++")
    assert not should_compile("auto", GPU, 10**6)
    with pytest.raises(ValueError, match=r"compile=regional: .*a C\+\+ compiler"):
        should_compile("regional", CPU, 1)


def test_dependencies_of_the_compiler_are_checked(monkeypatch):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: "/bin/c++" if name == "my-c++" else None)
    monkeypatch.delenv("CXX", raising=False)
    assert find_missing_compiler(CPU) == "a C++ compiler, such as g++"
    monkeypatch.setenv("CXX", "my-c++")
    assert find_missing_compiler(CPU) is None
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    assert find_missing_compiler(torch.device("cuda")) == "triton"


def test_an_error_of_the_compiler_is_one_line(monkeypatch):
    page = "C++ compile error\n\nCommand:\ng++ -x c++\n\nOutput:\na.cpp:1:10: fatal error: Python.h: No such file\n#include <b>"
    failures = [type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})(page), RuntimeError(page)]

    def fail(*_):
        raise failures[0]

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    forward = compilation.build_training_forward(lambda block: block, shapes=1)
    with pytest.raises(
        ValueError, match=r"^compile: .* a.cpp:1:10: fatal error: Python.h: No such file; .*compile=off$"
    ):
        forward(1)
    with torch.no_grad():
        assert forward(1) == 1
    failures.pop(0)
    with pytest.raises(RuntimeError, match="Command"):  # of another origin
        forward(1)


def test_an_unknown_compile_mode_is_refused():
    from sdft.training.settings import TrainingSettings

    with pytest.raises(ValueError, match="compile=max: .*off, regional, auto"):
        TrainingSettings(steps=1, compile="max")


def test_only_training_steps_are_compiled_and_no_parameter_is_renamed(tiny, monkeypatch):
    """Uses a stand-in for torch's compiler that records calls."""
    calls = []

    def fake_compile(function, **options):
        def call(*args, **kwargs):
            calls.append(options)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", fake_compile)
    unet = tiny().unet
    names, eager = list(unet.state_dict()), copy.deepcopy(unet)
    blocks = compile_blocks(unet, shapes=1)
    inputs = torch.randn(1, 4, 4, 4), torch.tensor([5]), torch.randn(1, 4, unet.config.cross_attention_dim)
    with torch.no_grad():
        assert torch.equal(unet(*inputs).sample, eager(*inputs).sample) and not calls
    unet.requires_grad_(True)(*inputs).sample.sum().backward()
    assert len(calls) == blocks > 10 and calls[0] == {"dynamic": False}
    assert list(unet.state_dict()) == names
    block = copy.deepcopy(unet.mid_block.resnets[0])  # memory estimation copies the network
    assert block.forward.__self__ is block
    remove_compiled_forwards(block)
    assert block.forward.__func__ is type(block).forward


def test_all_blocks_of_a_network_with_added_conditions_are_compiled(small_xl, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: lambda *args, **kw: compiled.append(1) or function(*args, **kw)
    )
    model = small_xl()
    blocks = compile_blocks(model.unet.requires_grad_(True), shapes=1)
    model.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), model.condition_prompts(["a cat"])).sum().backward()
    assert len(compiled) == blocks > 10


def test_second_derivatives_are_refused_by_name(run):
    with pytest.raises(ValueError, match=r"smooth_diffusion_weight=0.5: .*compile=regional"):
        run("steps=1", "smooth_diffusion_weight=0.5", "compile=regional")


def test_channels_last_changes_no_prediction(tiny):
    unet = tiny().unet
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([5, 900]), torch.randn(2, 4, unet.config.cross_attention_dim)
    expected = unet(*inputs).sample
    set_channels_last(unet)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(unet(*inputs).sample, expected, atol=1e-5, rtol=1e-5)


def read_losses(folder) -> list[float]:
    import sdft.runs.metrics_file as metrics_file

    return [
        float(row["train/loss"])
        for row in metrics_file.read_metrics(folder / metrics_file.METRICS_FILE)[1]
        if row.get("train/loss")
    ]


TWENTY = ["steps=20", "batch_size=2", "sample_every=0", "prompts=[a]"]
EXACT = ["cache=disk", "workers=2", "gradient_checkpointing=true"]  # the same operations
CLOSE = ["cache=off", "optimizer.fused=false"]  # the same sums in another order


@pytest.mark.slow
def test_faster_settings_have_the_losses_of_default_ones(run, monkeypatch):
    """Without the compiler, which the next test covers."""

    def train_with(override: str) -> list[float]:
        return read_losses(
            run(*TWENTY, "model.weights=pretrained", "cache=ram", override, name=override.replace("=", "-"))[1]
        )

    expected = train_with("workers=0")
    for override in EXACT:
        assert train_with(override) == expected, override
    for override in CLOSE:
        assert train_with(override) == pytest.approx(expected, rel=1e-3, abs=1e-5), override
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # so that every operation uses all threads
    try:
        assert train_with("checkpoints_total_limit=2") == pytest.approx(expected, rel=1e-3, abs=1e-5)
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["method=sft"]], ids=["lora", "sft"])
def test_compiled_steps_have_the_losses_of_eager_ones(run, tmp_path, overrides):
    """With one level of the UNet: the compiler takes seconds for each new shape of a block."""
    if find_missing_compiler(CPU):
        pytest.skip("no C++ compiler")
    model = shutil.copytree(ASSETS_FOLDER / "tiny-sd", tmp_path / "model")
    file = model / "unet" / "config.json"
    one_level = {"block_out_channels": [48], "layers_per_block": 1}
    one_level |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | one_level))
    overrides = [*TWENTY, f"model.name={model}", *overrides]
    _, plain = run(*overrides, name="plain")
    _, compiled = run(*overrides, "compile=regional", name="compiled")
    assert len(read_losses(plain)) == 20
    torch.testing.assert_close(
        torch.tensor(read_losses(compiled)), torch.tensor(read_losses(plain)), rtol=1e-3, atol=1e-5
    )
    assert json.loads((compiled / "run.json").read_text())["state"] == "finished"

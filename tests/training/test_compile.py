"""Compilation and memory format change losses only by rounding errors, and no saved file."""

import copy
import json
import os
import shutil
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig
from torch import nn

import sdft.training.compile as compilation
from sdft.models.embedded import ASSETS_FOLDER
from sdft.training.compile import (
    compile_blocks,
    find_missing_compiler,
    remove_compiled_forwards,
    set_channels_last,
    should_compile,
)
from sdft.training.fit import find_module_obstacle
from sdft.training.gradient_checkpointing import enable_gradient_checkpointing

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KERNEL_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture(autouse=True)
def kernel_folder(tmp_path, monkeypatch):
    """An empty folder of compiled kernels; the environment is restored."""
    monkeypatch.setattr(compilation, "KERNEL_FOLDER", tmp_path / "kernels")
    monkeypatch.setenv(KERNEL_VARIABLE, "")
    monkeypatch.delenv(KERNEL_VARIABLE)
    return tmp_path / "kernels"


def test_auto_compiles_long_runs_on_a_gpu(monkeypatch):
    monkeypatch.setattr(compilation, "find_missing_compiler", lambda device: None)
    assert [should_compile("auto", GPU, steps) for steps in (999, 1000)] == [False, True]
    assert not should_compile("auto", CPU, 10**6)
    assert should_compile("regional", CPU, 1) and not should_compile("off", CPU, 10**6)
    monkeypatch.setattr(compilation, "find_missing_compiler", lambda device: "a C++ compiler, such as g++")
    assert not should_compile("auto", GPU, 10**6)
    with pytest.raises(ValueError, match=r"compile=regional: .*a C\+\+ compiler"):
        should_compile("regional", CPU, 1)


def test_auto_says_why_it_does_not_compile(monkeypatch, capsys):
    monkeypatch.setattr(compilation, "find_missing_compiler", lambda device: None)
    for obstacle in ({"smoothness": object()}, {"offloaded_blocks": [1]}):
        module = SimpleNamespace(**{"smoothness": None, "offloaded_blocks": []} | obstacle)
        assert not should_compile("auto", GPU, 10**6, find_module_obstacle(module))
        option = {"smoothness": "smooth_diffusion_weight", "offloaded_blocks": "offload_blocks"}[next(iter(obstacle))]
        assert "compile    off: " in (output := capsys.readouterr().out) and option in output
    assert not should_compile("auto", GPU, 1) and "1000 steps" in capsys.readouterr().out
    assert not should_compile("auto", CPU, 10**6) and "GPU" in capsys.readouterr().out
    monkeypatch.setattr(compilation, "find_missing_compiler", lambda device: "triton")
    assert not should_compile("auto", GPU, 10**6) and "triton" in capsys.readouterr().out


def test_dependencies_of_the_compiler_are_checked(monkeypatch):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: "/bin/c++" if name == "my-c++" else None)
    monkeypatch.delenv("CXX", raising=False)
    assert find_missing_compiler(CPU) == "a C++ compiler, such as g++"
    monkeypatch.setenv("CXX", "my-c++")
    assert find_missing_compiler(CPU) is None
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    assert find_missing_compiler(torch.device("cuda")) == "triton"
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    assert "newer torch" in find_missing_compiler(CPU)


def test_later_runs_find_kernels_in_a_private_folder(kernel_folder, monkeypatch):
    compilation.store_kernels()
    assert os.environ[KERNEL_VARIABLE] == str(kernel_folder) and kernel_folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv(KERNEL_VARIABLE, "elsewhere")
    compilation.store_kernels()
    assert os.environ[KERNEL_VARIABLE] == "elsewhere"


def test_without_a_writable_folder_torch_chooses_that_of_kernels(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(compilation, "KERNEL_FOLDER", tmp_path / "file" / "kernels")
    compilation.store_kernels()
    assert KERNEL_VARIABLE not in os.environ


def test_an_error_of_the_compiler_is_one_line(monkeypatch):
    page = "C++ compile error\n\nCommand:\ng++ -x c++\n\nOutput:\na.cpp:1:10: fatal error: Python.h: No such file\n#include <b>"
    failures = [type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})(page), RuntimeError(page)]

    def fail(*_):
        raise failures[0]

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    forward = compilation.build_training_forward(lambda block: block, shapes=1, count=1)
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
    assert len(calls) == blocks > 10 and calls[0]["dynamic"] is False
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


@pytest.fixture
def graph_calls(monkeypatch):
    """Calls of compiled graphs, by graph, with a backend that runs them eagerly; graphs of earlier tests are removed."""
    calls, torch_compile = Counter(), torch.compile

    def backend(graph, inputs):
        number = len(calls)
        calls[number] = 0

        def run_graph(*args):
            calls[number] += 1
            return graph(*args)

        return run_graph

    monkeypatch.setattr(torch, "compile", partial(torch_compile, backend=backend))
    torch.compiler.reset()
    return calls


def test_blocks_of_more_widths_than_the_limit_of_torch_are_all_compiled(graph_calls):
    with torch.device("meta"):
        widths = range(8, 8 * 13, 8)
        network = nn.Sequential(
            *(ResnetBlock2D(in_channels=n, out_channels=n + 8, groups=4, temb_channels=None) for n in widths)
        )
        blocks = compile_blocks(network, shapes=1)
        latents = torch.zeros(1, 8, 4, 4)
    for block in network:
        latents = block(latents, None)
    assert blocks == len(graph_calls) == graph_calls.total() == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "sizes", "checkpointing"),
    [("sd15", [(64, 64), (48, 80), (72, 56)], True), ("sdxl", [(128, 96), (96, 128)], False)],
)
def test_every_block_of_the_published_networks_is_compiled(graph_calls, architecture, sizes, checkpointing):
    """On meta tensors. Each graph serves many blocks; further latent sizes add few graphs."""
    config = json.loads((ASSETS_FOLDER / architecture / "unet" / "config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
        inputs = torch.zeros(1, dtype=torch.long), torch.zeros(1, 77, unet.config.cross_attention_dim)
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    if checkpointing:
        enable_gradient_checkpointing(SimpleNamespace(unet=unet, text_encoders={}))
    blocks, counts = compile_blocks(unet, shapes=len(sizes)), []
    for height, width in sizes:
        before = graph_calls.total()
        prediction = unet(torch.zeros(1, 4, height, width, device="meta"), *inputs, added_cond_kwargs=added).sample
        assert graph_calls.total() - before == blocks
        prediction.sum().backward()
        counts.append(len(graph_calls))
    assert counts[0] <= counts[-1] <= 22 and blocks == {"sd15": 38, "sdxl": 87}[architecture]


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
def test_compiled_steps_have_the_losses_of_eager_ones(run, tmp_path, kernel_folder, overrides):
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
    assert any(kernel_folder.rglob("*.so"))

"""Faster kernels change no loss beyond the last digits, and nothing that is saved."""

import copy
import json

import pytest
import torch

import sdft.training.compile as compiled
from sdft.training.compile import compile_blocks, find_missing_compiler, set_channels_last, should_compile

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_compiles_long_runs_where_it_can(monkeypatch):
    monkeypatch.setattr(compiled, "find_missing_compiler", lambda device: None)
    assert [should_compile("auto", GPU, steps) for steps in (999, 1000)] == [False, True]
    assert not should_compile("auto", CPU, 10**6)
    assert should_compile("regional", CPU, 1) and not should_compile("off", CPU, 10**6)
    monkeypatch.setattr(compiled, "find_missing_compiler", lambda device: "a C++ compiler, such as g++")
    assert not should_compile("auto", GPU, 10**6)
    with pytest.raises(ValueError, match=r"compile=regional: torch's compiler needs a C\+\+ compiler"):
        should_compile("regional", CPU, 1)


def test_what_the_compiler_needs_is_looked_for(monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: "/bin/c++" if name == "mine" else None)
    monkeypatch.delenv("CXX", raising=False)
    assert find_missing_compiler(CPU) == "a C++ compiler, such as g++"
    monkeypatch.setenv("CXX", "mine")
    assert find_missing_compiler(CPU) is None
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert find_missing_compiler(torch.device("cuda")) == "triton"


def test_another_word_is_refused():
    from sdft.training.settings import TrainingSettings

    with pytest.raises(ValueError, match="compile=max: choose one of off, regional, auto"):
        TrainingSettings(steps=1, compile="max")


def test_only_what_learns_is_compiled_and_nothing_is_renamed(tiny, monkeypatch):
    """A stand-in for torch's compiler: what is called when, not what it makes."""
    called = []

    def compile_(module, **words):
        module._compiled_call_impl = lambda *args, **kwargs: (called.append(words), module._call_impl(*args, **kwargs))[
            1
        ]

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    unet = tiny().unet
    names, plain = list(unet.state_dict()), copy.deepcopy(unet)
    blocks = compile_blocks(unet, shapes=1)
    inputs = torch.randn(1, 4, 4, 4), torch.tensor([5]), torch.randn(1, 4, unet.config.cross_attention_dim)
    with torch.no_grad():
        assert torch.equal(unet(*inputs).sample, plain(*inputs).sample) and not called
    unet.requires_grad_(True)(*inputs).sample.sum().backward()
    assert len(called) == blocks > 10 and called[0] == {"dynamic": False}
    assert list(unet.state_dict()) == names
    assert copy.deepcopy(unet.mid_block.resnets[0])._compiled_call_impl is None  # estimates of memory copy the network


def test_channels_last_changes_no_prediction(tiny):
    unet = tiny().unet
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([5, 900]), torch.randn(2, 4, unet.config.cross_attention_dim)
    before = unet(*inputs).sample
    set_channels_last(unet)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(unet(*inputs).sample, before, atol=1e-5, rtol=1e-5)


def losses(folder) -> list[float]:
    import sdft.runs.metrics_csv as metrics_file

    return [
        float(row["train/loss"])
        for row in metrics_file.read_metrics(folder / metrics_file.METRICS_FILE)[1]
        if row.get("train/loss")
    ]


FIFTY = ["steps=50", "batch_size=2", "sample_every=0", "prompts=[a]", "model.weights=pretrained"]
SAME = ["cache=disk", "workers=2", "gradient_checkpointing=true"]  # the same operations
CLOSE = ["cache=off", "optimizer.fused=false"]  # the same sums in another order


@pytest.mark.slow
def test_fifty_fast_steps_have_the_losses_of_plain_ones(run, monkeypatch):
    """The compiler's are below."""

    def told(word):
        return losses(run(*FIFTY, "cache=ram", word, name=word.replace("=", "-"))[1])

    plain = told("workers=0")
    for word in SAME:
        assert told(word) == plain, word
    for word in CLOSE:
        assert told(word) == pytest.approx(plain, rel=1e-3, abs=1e-5), word
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # all of them share every operation
    try:
        assert told("checkpoints_total_limit=2") == pytest.approx(plain, rel=1e-3, abs=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["method=sft"]], ids=["lora", "sft"])
def test_fifty_compiled_steps_have_the_losses_of_plain_ones(run, words):
    if find_missing_compiler(CPU):
        pytest.skip("no C++ compiler")
    _, plain = run(*FIFTY, *words, name="plain")
    _, fast = run(*FIFTY, *words, "compile=regional", name="fast")
    assert len(losses(plain)) == 50
    torch.testing.assert_close(torch.tensor(losses(fast)), torch.tensor(losses(plain)), rtol=1e-3, atol=1e-5)
    assert json.loads((fast / "run.json").read_text())["state"] == "finished"

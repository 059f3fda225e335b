"""CUDA graphs of training steps change no loss and no weight; a stand-in for graphs calls the recorded function."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import read_metric_rows
from torch import nn

from sdft.training import step_graphs
from sdft.training.precision import Precision
from sdft.training.settings import TrainingSettings
from sdft.training.step_graphs import GraphedModule, StepGraphs, check_graphs
from sdft.training.strategy import Strategy


class StandInRecorder:
    """Like graphs, replays write into the tensors of the recording; counts both."""

    def __init__(self):
        self.recordings = self.replays = 0

    def __call__(self, run):
        outputs = run()
        self.recordings += 1

        def replay():
            self.replays += 1
            for name, output in run().items():
                outputs[name].copy_(output)
            return outputs

        return replay


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))]


def build_graphs(weights, **options):
    def compute(batch):
        loss = sum((batch["x"].mean() * weight**2).sum() for weight in weights)
        loss.backward()
        return {"loss": loss.detach()}

    recorder = StandInRecorder()
    return StepGraphs(compute, weights, recorder), recorder


def test_one_graph_is_recorded_per_batch_shape_and_repeats_with_new_values(weights):
    graphs, recorder = build_graphs(weights)
    first = graphs({"x": torch.full((2, 3), 1.0)})["loss"]
    second = graphs({"x": torch.full((2, 3), 2.0)})["loss"]
    assert second == 2 * first  # a copy, which the replay has not changed
    graphs({"x": torch.ones(4, 3)})
    assert (recorder.recordings, recorder.replays) == (2, 3)


def test_gradients_are_those_of_the_last_batch_in_the_same_memory(weights):
    graphs, _ = build_graphs(weights)
    graphs({"x": torch.ones(2)})
    addresses = [weight.grad.data_ptr() for weight in weights]
    for weight in weights:
        weight.grad = None  # as `zero_grad` and skipped steps do
    graphs({"x": torch.full((5,), 3.0)})
    graphs.set_gradients()
    for weight, address in zip(weights, addresses, strict=True):
        assert weight.grad.data_ptr() == address and weight.grad.stride() == weight.stride()
        torch.testing.assert_close(weight.grad, 6 * weight.detach())


def test_shapes_beyond_the_limit_run_eagerly(weights, monkeypatch):
    monkeypatch.setattr(step_graphs, "MAX_GRAPHS", 1)
    graphs, recorder = build_graphs(weights)
    graphs({"x": torch.ones(2)})
    graphs({"x": torch.full((3,), 3.0)})
    assert recorder.recordings == recorder.replays == 1
    torch.testing.assert_close(weights[0].grad, 6 * weights[0].detach())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_recorded_graphs_repeat_with_new_values(weights):
    weights = [nn.Parameter(weight.detach().cuda()) for weight in weights]

    def compute(batch):
        loss = sum((batch["x"].mean() * weight**2).sum() for weight in weights)
        loss.backward()
        return {"loss": loss.detach()}

    graphs = StepGraphs(compute, weights, step_graphs.CUDAGraphRecorder())
    for shape, value in ((2, 1.0), (3, 2.0), (2, 3.0)):
        loss = graphs({"x": torch.full((shape,), value, device="cuda")})["loss"]
        torch.testing.assert_close(loss, value * sum((weight**2).sum() for weight in weights).detach())
        torch.testing.assert_close(weights[0].grad, 2 * value * weights[0].detach())


@pytest.fixture
def parts(monkeypatch):
    """The components that `check_graphs` reads, of a run on a GPU."""
    monkeypatch.setattr(Strategy, "device", lambda self: torch.device("cuda"))
    return {
        "training": TrainingSettings(steps=1),
        "strategy": Strategy(accelerator="cpu"),
        "precision": Precision(),
        "method": SimpleNamespace(dropout=0.0),
    }


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("training", "gradient_accumulation_steps", 2),
        ("training", "gradient_checkpointing", True),
        ("training", "offload_blocks", 0.5),
        ("method", "dropout", 0.1),
        ("precision", "compute_dtype", "float16"),
        ("strategy", "devices", 2),
    ],
)
def test_options_that_no_graph_can_record_are_refused(parts, part, option, value):
    cfg = SimpleNamespace(smooth_diffusion_weight=0.0)
    check_graphs(cfg, parts)
    setattr(parts[part], option, value)
    key = "precision=fp16" if part == "precision" else f"{option}={value}"
    with pytest.raises(ValueError, match=f"compile=graphs: .*{key}.*compile=regional"):
        check_graphs(cfg, parts)


def test_second_derivatives_are_not_recorded(parts):
    with pytest.raises(ValueError, match=r"compile=graphs: smooth_diffusion_weight=0.5 "):
        check_graphs(SimpleNamespace(smooth_diffusion_weight=0.5), parts)


def test_graphs_require_a_gpu(run):
    with pytest.raises(ValueError, match=r"compile=graphs: .*no CUDA GPU; use compile=off"):
        run("steps=1", "compile=graphs")


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["method=lora", "precision=bf16"], ["method=sft"]], ids=["lora", "sft"])
def test_graphed_steps_have_the_losses_and_weights_of_eager_ones(run, monkeypatch, overrides):
    recorders = []

    def build_recorder():
        recorders.append(StandInRecorder())
        return recorders[-1]

    monkeypatch.setattr(step_graphs, "check_graphs", lambda cfg, parts: None)
    monkeypatch.setattr(GraphedModule, "build_recorder", staticmethod(build_recorder))
    train = partial(run, *overrides, "steps=4", "sample_every=0", "prompts=[a]", "resolution=32")
    eager, folder = train(name="eager")
    graphed, graphed_folder = train("compile=graphs", name="graphed")
    assert (recorders[0].recordings, recorders[0].replays) == (1, 4)
    losses = [[row["train/loss"] for row in read_metric_rows(each)] for each in (folder, graphed_folder)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    weights = graphed.get_trainable_parameters()
    assert all(torch.equal(weight, weights[name]) for name, weight in eager.get_trainable_parameters().items())

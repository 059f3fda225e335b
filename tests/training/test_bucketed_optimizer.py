"""Bucketed updates: fused and separate steps are bit-equal, small steps move bf16 weights, states resume."""

import copy
import io
from functools import partial

import pytest
import torch
from pretended_gpu import PretendedGPU
from torch import nn
from torch.nn.functional import mse_loss

from sdft.training import buckets
from sdft.training.adamw_bf16 import AdamWBF16
from sdft.training.bucketed_optimizer import BucketedOptimizer

OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adamw_foreach": partial(torch.optim.AdamW, foreach=True),
    "adamw_bf16": partial(AdamWBF16),
    "adafactor": partial(torch.optim.Adafactor, eps=(None, 1.0)),
}
WITH_8BIT = [*OPTIMIZERS, "adamw8bit"]


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    monkeypatch.setattr(buckets, "MAX_ELEMENTS", 5000)


def get_optimizer(name: str):
    return partial(pytest.importorskip("bitsandbytes").optim.AdamW8bit) if name == "adamw8bit" else OPTIMIZERS[name]


def build_network(dtype=torch.bfloat16) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8)).to(dtype)


def build(network, name: str = "adamw", lr: float = 1e-3, masters=None, **options) -> BucketedOptimizer:
    layers = list(network)
    groups = [
        {"params": [*layers[0].parameters(), *layers[2].parameters()], "lr": lr, "name": "unet"},
        {"params": [*layers[4].parameters()], "lr": 2 * lr, "name": "clip_l"},
    ]
    optimizer = BucketedOptimizer(groups, get_optimizer(name), seed=7, **options)
    optimizer.connect(masters or {})
    return optimizer


def train(network, optimizer, steps: range, max_norm: float = float("inf")) -> list[float]:
    dtype, norms = next(network.parameters()).dtype, []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs, targets = (torch.randn(32, size, generator=generator).to(dtype) for size in (16, 8))

        def closure():
            loss = mse_loss(network(inputs).float(), targets.float())  # noqa: B023
            loss.backward()
            norms.append(float(optimizer.clip_gradients(max_norm)))
            return loss

        optimizer.step(closure)
    return norms


def list_states(optimizer) -> list:
    values = [state.values() for bucket in optimizer.buckets for state in bucket.optimizer.state.values()]
    return [value for state in values for value in state if isinstance(value, torch.Tensor)]


def assert_equal(network, other) -> None:
    for weight, expected in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WITH_8BIT)
def test_steps_inside_and_after_the_backward_pass_are_equal_to_the_bit(name, dtype):
    networks = [build_network(dtype) for _ in range(2)]
    optimizers = [build(net, name, fused_backward=fused) for net, fused in zip(networks, (True, False), strict=True)]
    norms = [train(net, optimizer, range(5)) for net, optimizer in zip(networks, optimizers, strict=True)]
    assert_equal(*networks)
    assert not torch.equal(networks[0][0].weight, build_network(dtype)[0].weight)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert all(map(torch.equal, *map(list_states, optimizers)))


@pytest.mark.parametrize("name", ["adamw", "adamw_foreach", "adafactor"])
def test_fp32_weights_are_those_of_the_plain_optimizer(name):
    networks = [build_network(torch.float32) for _ in range(2)]
    groups = build(networks[0], name).param_groups
    plain = OPTIMIZERS[name]([{key: group[key] for key in ("params", "lr")} for group in groups])
    plain.clip_gradients = lambda _: torch.zeros(())
    for step in range(5):
        train(networks[0], plain, range(step, step + 1))
        plain.zero_grad()
    train(networks[1], build(networks[1], name), range(5))
    assert_equal(*networks)


def test_fp32_masters_take_the_gradients_of_the_networks():
    networks, masters = ([build_network(dtype) for _ in range(2)] for dtype in (torch.bfloat16, torch.float32))
    pairs = [dict(zip(net.parameters(), m.parameters(), strict=True)) for net, m in zip(networks, masters, strict=True)]
    optimizers = [build(masters[0], masters=pairs[0], fused_backward=True), build(masters[1])]
    for weight, master in pairs[1].items():
        weight.register_post_accumulate_grad_hook(partial(move_gradient, master))
    for step in range(5):
        for network, optimizer, weights in zip(networks, optimizers, pairs, strict=True):
            train(network, optimizer, range(step, step + 1))
            assert all(weight.grad is None for weight in weights)
            for weight, master in weights.items():
                weight.data.copy_(master.data)
    assert_equal(*masters)
    assert not torch.equal(masters[0][0].weight, networks[0][0].weight.float())


def move_gradient(master, weight) -> None:
    master.grad, weight.grad = weight.grad.float(), None


def test_gradients_are_freed_bucket_by_bucket():
    network = build_network()
    optimizer, numbers = build(network, fused_backward=True), []
    update = optimizer.update

    def count_gradients(bucket):
        numbers.append(sum(w.grad is not None for w in network.parameters()))
        update(bucket)

    optimizer.update = count_gradients
    train(network, optimizer, range(1))
    assert len(optimizer.buckets) == 5  # of the first layer, two halves of a weight, its bias, and the last layer
    assert max(numbers) <= 2 and all(w.grad is None for w in network.parameters())


@pytest.mark.parametrize("name", WITH_8BIT)
def test_a_step_below_the_resolution_of_bf16_moves_the_mean_weight(name):
    layer = nn.Linear(200, 200, bias=False).bfloat16()
    nn.init.ones_(layer.weight)
    group = {"params": [layer.weight], "lr": 1e-4, "name": "unet"}
    build_inner = partial(get_optimizer(name), weight_decay=0.0)
    optimizer = BucketedOptimizer([group], build_inner, seed=0)
    for _ in range(10):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    # 10 steps of 1e-4, a fortieth of the distance 1/256 to the next number below 1
    assert float(layer.weight.detach().float().mean()) == pytest.approx(1 - 10e-4, rel=1e-4)


def test_weight_decay_acts_on_bf16_weights():
    layer = nn.Linear(200, 200, bias=False).bfloat16()
    nn.init.ones_(layer.weight)
    optimizer = BucketedOptimizer(
        [{"params": [layer.weight], "lr": 1e-2}], partial(torch.optim.AdamW, weight_decay=0.01), 0
    )
    for _ in range(10):
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
    assert float(layer.weight.detach().float().mean()) == pytest.approx((1 - 1e-4) ** 10, rel=2e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", WITH_8BIT)
def test_a_resumed_run_is_bit_exact(name, fused):
    network = build_network()
    optimizer = build(network, name, fused_backward=fused)
    train(network, optimizer, range(3))
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    train(network, optimizer, range(3, 6))
    file.seek(0)
    weights, states = torch.load(file, weights_only=True)
    resumed = build_network()
    resumed.load_state_dict(weights)
    resumed_optimizer = build(resumed, name, fused_backward=fused)
    resumed_optimizer.load_state_dict(states)
    torch.rand(1)  # no global state is drawn from
    train(resumed, resumed_optimizer, range(3, 6))
    assert_equal(network, resumed)


def test_states_of_another_kind_are_refused():
    network = build_network()
    with pytest.raises(ValueError, match="fused_backward"):
        build(network).load_state_dict(torch.optim.AdamW(network.parameters()).state_dict())


@pytest.mark.parametrize("name", WITH_8BIT)
def test_a_nan_loss_leaves_weights_unchanged_and_later_steps_finite(name):
    network, original = build_network(), build_network()
    optimizer = build(network, name, fused_backward=True)
    optimizer.found_inf = torch.ones(())
    (network(torch.ones(4, 16).bfloat16()).sum() * torch.nan).backward()
    assert optimizer.clip_gradients(1.0).isnan()
    optimizer.step()
    assert_equal(network, original)
    train(network, optimizer, range(2))
    assert all(w.isfinite().all() for w in network.parameters())


@pytest.mark.parametrize("name", WITH_8BIT)
def test_nan_gradients_of_a_finite_loss_reach_no_weight(name):
    network = build_network()
    optimizer = build(network, name, fused_backward=True)
    network[2].weight.register_hook(lambda gradient: gradient * torch.nan)
    train(network, optimizer, range(1))
    assert all(w.isfinite().all() for w in network.parameters())
    assert torch.equal(network[0].weight, build_network()[0].weight)  # its gradient comes after the NaN


def test_the_separate_step_clips_by_the_norm_of_all_gradients():
    network, clipped = build_network(torch.float32), build_network(torch.float32)
    sgd = partial(torch.optim.SGD)
    norms = train(network, BucketedOptimizer([{"params": [*network.parameters()], "lr": 1.0}], sgd, 0), range(1), 0.1)
    plain = torch.optim.SGD(clipped.parameters(), 1.0)
    plain.clip_gradients = lambda norm: nn.utils.clip_grad_norm_(clipped.parameters(), norm)
    assert train(clipped, plain, range(1), 0.1) == pytest.approx(norms)
    for weight, expected in zip(network.parameters(), clipped.parameters(), strict=True):
        assert torch.allclose(weight, expected, atol=1e-7)


def test_learning_rates_follow_a_schedule():
    network = build_network(torch.float32)
    optimizer = build(network)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    train(network, optimizer, range(1))
    schedule.step()
    weights = copy.deepcopy(network)
    train(network, optimizer, range(1, 2))
    assert_equal(network, weights)


def test_a_second_backward_pass_in_a_step_is_an_error():
    network = build_network()
    build(network, fused_backward=True)
    network(torch.ones(4, 16).bfloat16()).sum().backward()
    with pytest.raises(AssertionError, match="second backward"):
        network(torch.ones(4, 16).bfloat16()).sum().backward()


@pytest.mark.parametrize("name", ["adamw", "adamw_bf16"])
def test_updates_on_a_gpu_wait_for_nothing_and_give_the_weights_of_the_cpu(name):
    network = build_network()
    train(network, build(network, name, fused_backward=True), range(3))
    with PretendedGPU() as gpu:
        on_gpu = build_network().to("cuda")
        optimizer = build(on_gpu, name, fused_backward=True)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            inputs, targets = (torch.randn(32, size, generator=generator).bfloat16().to("cuda") for size in (16, 8))
            gpu.phase = "step" if step else ""
            mse_loss(on_gpu(inputs).float(), targets.float()).backward()
            optimizer.clip_gradients(float("inf"))
            optimizer.step()
            gpu.phase = ""
        weights = [weight.detach().cpu() for weight in on_gpu.parameters()]
        assert not [event for event in gpu.syncs + gpu.uploads if event.phase == "step"]
    assert all(map(torch.equal, weights, network.parameters()))

"""The pretended GPU, on which the device tests rest."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pretended_gpu import GPU, GPUTensor, PretendedGPU
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def gpu():
    with PretendedGPU() as gpu:
        yield gpu


MIXED = {
    "add": lambda a, b: a + b,
    "linear": F.linear,
    "cat": lambda a, b: torch.cat([a, b]),
    "foreach": lambda a, b: torch._foreach_add([a], [b]),
    "embedding": lambda a, b: F.embedding(b.long(), a),
    "stack of scalars": lambda a, b: torch.stack([a[0, 0], b[0, 0]]),
    "in place": lambda a, b: b.add_(a),
}


@pytest.mark.parametrize("operation", MIXED.values(), ids=MIXED)
def test_mixed_devices_are_refused(gpu, operation):
    with pytest.raises(RuntimeError, match="same device"):
        operation(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


def test_scalars_of_the_cpu_and_copies_are_allowed(gpu):
    ones = torch.ones(2, device=GPU)
    assert (ones * torch.tensor(3.0)).host.tolist() == [3, 3]
    assert torch.zeros(2).copy_(ones).device.type == "cpu"
    assert torch.zeros(2, device=GPU).copy_(torch.ones(2)).is_cuda


SYNCS = {
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "if": lambda x: 1 if x.sum() else 0,
    "item": lambda x: x.sum().item(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", non_blocking=True),
    "tolist": lambda x: x.tolist(),
    "print": str,
    "copy into": lambda x: torch.zeros(3).copy_(x),
    "boolean index": lambda x: x[x > 1],
    "assignment by a mask": lambda x: x.__setitem__(x > 0, torch.zeros(2, device=GPU)),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=GPU)),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "pickle": lambda x: x.__reduce_ex__(2),
}


@pytest.mark.parametrize("operation", SYNCS.values(), ids=SYNCS)
def test_a_sync_is_recorded_with_its_line(gpu, operation):
    x = torch.arange(3.0, device="cuda")
    gpu.phase = "step"
    operation(x)
    line = inspect.getsourcelines(operation)[1] if inspect.isfunction(operation) else None
    (event,) = gpu.syncs[:1]
    assert event.phase == "step" and "test_pretended_gpu.py:" in event.line
    assert line is None or f"test_pretended_gpu.py:{line} " in event.line


UPLOADS = {
    "to": lambda x: torch.ones(3).to(x),
    "cuda": lambda x: torch.ones(3).cuda(),
    "tensor": lambda x: torch.tensor([1.0], device="cuda"),
    "copy": lambda x: x.copy_(torch.ones(3)),
    "index": lambda x: x[torch.tensor([0, 1])],
    "list index": lambda x: x[[0, 1]],
}


@pytest.mark.parametrize("operation", UPLOADS.values(), ids=UPLOADS)
def test_a_copy_to_the_device_is_recorded_with_its_line(gpu, operation):
    operation(torch.zeros(3, device="cuda"))
    (event,) = gpu.uploads
    assert f"test_pretended_gpu.py:{inspect.getsourcelines(operation)[1]} " in event.line and not gpu.syncs


def test_what_stays_on_the_device_is_not_recorded(gpu):
    x = torch.ones(3, 3, device="cuda", requires_grad=True)
    y = F.dropout(torch.where(x > 0, 5, x[0]) + x.new_zeros(3) + torch.zeros_like(x), 0.5)
    y.masked_fill(y > 9, 0).square().mean().backward()
    assert isinstance(x.grad, GPUTensor) and x.grad.device == GPU
    x.detach().lerp_(x.grad, 0.5)
    assert not gpu.syncs and not gpu.uploads


def test_data_may_move_a_parameter(gpu):
    weight = nn.Parameter(torch.ones(2, device="cuda"))
    weight.data = torch.zeros(3)
    assert type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.tolist() == [0, 0, 0]


def test_threads_of_a_pool_use_the_device(gpu):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.ones, 2, device="cuda").result().is_cuda
    assert not gpu.syncs


def test_a_generator_of_the_cpu_is_refused(gpu):
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def test_training_gives_the_weights_of_the_cpu(gpu):
    def train(device) -> torch.Tensor:
        torch.manual_seed(0)
        network, inputs = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)), torch.randn(5, 3)
        weights = list(network.parameters())
        network.to(device)
        assert all(a is b for a, b in zip(weights, network.parameters(), strict=True))
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            network(inputs.to(device)).square().mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return network.cpu()[0].weight

    assert torch.equal(train("cpu"), train("cuda"))


def step_fused(gradient, weight) -> None:
    weight.requires_grad_().grad_dtype = None
    weight.grad = gradient
    torch.optim.AdamW([weight], fused=True).step()


MIXED_DTYPES = {
    "linear": F.linear,
    "layer norm": lambda a, b: F.layer_norm(a, (4,), b[0], b[0]),
    "group norm": lambda a, b: F.group_norm(a, 2, b[0], b[0]),
    "attention": lambda a, b: F.scaled_dot_product_attention(a[None], b[None], b[None]),
    "convolution": lambda a, b: F.conv1d(a, b[..., None]),
    "fused AdamW": step_fused,
}


@pytest.mark.parametrize("operation", MIXED_DTYPES.values(), ids=MIXED_DTYPES)
def test_mixed_dtypes_are_refused(gpu, operation):
    a, b = torch.ones(4, 4, device="cuda", dtype=torch.bfloat16), torch.ones(4, 4, device="cuda")
    operation(b, b.detach())
    with pytest.raises(RuntimeError, match="dtype|type"):
        operation(a, b)


def test_autocast_is_refused(gpu):
    x = torch.ones(2, 2, device="cuda")
    with torch.autocast("cuda", enabled=False):
        assert F.linear(x, x).is_cuda
    with pytest.raises(RuntimeError, match="autocast"), torch.autocast("cuda", torch.float16):
        F.linear(x, x)


def test_torch_is_restored():
    def read_state() -> list:
        functions = [*vars(torch.cuda).values(), *vars(torch.accelerator).values(), torch.Tensor.pin_memory]
        swaps = torch.__future__.get_swap_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
        return [*map(id, functions), *swaps, PretendedGPU.active]

    before, was_available = read_state(), torch.cuda.is_available()
    with pytest.raises(KeyError), PretendedGPU():
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        raise KeyError
    assert read_state() == before and torch.cuda.is_available() == was_available
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
    assert weight.grad.tolist() == [1, 1]

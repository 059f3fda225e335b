"""Activations and frozen blocks in CPU memory change no result, and take no memory of the device."""

import weakref
from functools import partial

import pytest
import torch
from conftest import compose_config
from pretended_gpu import GPU, PretendedGPU
from test_memory_estimate import build_sample

from sdft.losses.diffusion import DiffusionLoss
from sdft.losses.smooth_diffusion import SmoothDiffusionLoss
from sdft.methods.lora import LoRA
from sdft.models.sampling import Sampling
from sdft.training import gradient_checkpointing
from sdft.training.block_offload import DeviceBuffers, offload_blocks
from sdft.training.memory_estimate import count_bytes, estimate_memory
from sdft.training.module import DiffusionModule
from sdft.training.settings import TrainingSettings
from sdft.training.step_spec import StepSpec

CPU = torch.device("cpu")
SAMPLING = Sampling(steps=2, guidance_scale=1.0)


@pytest.fixture(autouse=True)
def offload_small_activations(monkeypatch):
    monkeypatch.setattr(gradient_checkpointing, "MIN_OFFLOADED_BYTES", 0)


def build_module(model, checkpointing=False, share=0.0, smoothness=None, device=CPU, **options) -> DiffusionModule:
    optimizer, rates = partial(torch.optim.AdamW, fused=True), dict.fromkeys(("unet", "clip_l", "clip_g"), 1e-3)
    method = LoRA(4, 4.0, text_encoder=False, **options)
    module = DiffusionModule(
        model, method, DiffusionLoss(), optimizer, None, rates, checkpointing=checkpointing, smoothness=smoothness
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in module.get_trainable_parameters().values():  # the B factors start at 0
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    module.offloaded_blocks = offload_blocks(model.unet, share, device) if share else []
    return module


def build_batch(module) -> dict[str, torch.Tensor]:
    sample = build_sample(module)
    sample |= {"direction": sample["perturbation"]}
    return {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in sample.items()}


def compute_gradients(module, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    losses = module.compute_losses(batch)
    losses.mean().backward()
    return losses, {name: p.grad for name, p in module.get_trainable_parameters().items()}


CASES = {
    "activations": ("offload", 0, {}),
    "blocks": (False, 1, {}),
    "blocks, DoRA": (False, 1, {"use_dora": True}),
    "half of the blocks with checkpointing": (True, 0.5, {}),
    "both": ("offload", 1, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_offload_changes_no_loss_gradient_or_image(tiny, case):
    checkpointing, share, options = CASES[case]
    reference, module = build_module(tiny(), **options), build_module(tiny(), checkpointing, share, **options)
    batch = build_batch(reference)
    expected_losses, expected = compute_gradients(reference, batch)
    losses, gradients = compute_gradients(module, batch)
    assert torch.equal(losses, expected_losses) and gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    images = [SAMPLING(m.model, ["a three"], 32)[0].tobytes() for m in (reference, module)]
    assert images[0] == images[1]


@pytest.mark.parametrize("checkpointing", [False, pytest.param("offload", marks=pytest.mark.slow)])
def test_offload_changes_no_second_derivative(tiny, checkpointing):
    batch, gradients = None, []
    for options in ({}, {"checkpointing": checkpointing, "share": 1}):
        module = build_module(tiny(), smoothness=SmoothDiffusionLoss(0.1), **options)
        batch = batch or build_batch(module)
        gradients.append(compute_gradients(module, batch)[1])
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_at_most_one_offloaded_block_is_on_the_device(tiny, monkeypatch, checkpointing):
    module, load, copies, peaks = build_module(tiny(), checkpointing, 1), DeviceBuffers.load, [], []

    def count_copies(self, block):
        buffers = load(self, block)
        copies.extend(weakref.ref(buffer) for buffer in buffers.values())
        peaks.append(len({id(copy()) for copy in copies if copy() is not None}))
        return buffers

    monkeypatch.setattr(DeviceBuffers, "load", count_copies)
    losses = module.compute_losses(build_batch(module))
    assert not any(copy() is not None for copy in copies) and len(copies) >= len(module.offloaded_blocks) > 1
    losses.mean().backward()
    # one is computed in the backward pass while autograd's next operation still holds a weight of the last
    assert max(peaks) <= 2


def test_the_estimate_counts_offloaded_weights_and_activations_out(tiny):
    module, offloaded = build_module(tiny()), build_module(tiny(), share=1)
    step = StepSpec(build_sample(module), 8, 1, CPU)
    host = sum(count_bytes(weight) for block in offloaded.offloaded_blocks for weight in block.host_weights)
    largest = max(sum(map(count_bytes, block.host_buffers.values())) for block in offloaded.offloaded_blocks)
    before, after = estimate_memory(module, step), estimate_memory(offloaded, step)
    assert before.weights - after.weights == host > before.weights / 4
    assert before.activations <= after.activations <= before.activations + 2 * largest
    step.gradient_checkpointing = True
    with_checkpointing = estimate_memory(module, step).activations
    assert (
        estimate_memory(offloaded, step).activations <= with_checkpointing + 2 * largest
    )  # blocks are still recomputed
    step.gradient_checkpointing = "offload"
    assert estimate_memory(module, step).activations < with_checkpointing


def test_blocks_are_selected_by_their_share_and_restored(tiny):
    model = tiny()
    module, before = build_module(model), dict(model.unet.named_parameters())
    sizes = []
    for share in (1, 0.5):
        blocks = offload_blocks(model.unet, share, CPU)
        assert not any(weight is p for block in blocks for weight in block.host_weights for p in module.parameters())
        sizes.append(sum(count_bytes(weight) for block in blocks for weight in block.host_weights))
        for block in blocks:
            block.restore_parameters()
    after = dict(model.unet.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.1)


@pytest.mark.parametrize("checkpointing, share", [("offload", 0), (False, 1), ("offload", 1)])
def test_offloaded_memory_stays_on_the_cpu_and_nothing_waits_for_it(tiny, checkpointing, share):
    with PretendedGPU() as gpu:
        module = build_module(tiny(), checkpointing, share, device=GPU)
        module.to(GPU)
        batch = {name: tensor.to(GPU) for name, tensor in build_batch(module).items()}
        compute_gradients(module, batch)
        gpu.syncs, gpu.uploads = [], []
        compute_gradients(module, batch)
    assert all(weight.device == CPU for block in module.offloaded_blocks for weight in block.host_weights)
    assert bool(gpu.uploads) and {event.line.split(":")[0] for event in gpu.uploads} <= {
        "training/block_offload.py", "training/gradient_checkpointing.py",
    }  # fmt: skip
    # copies to pinned memory are queued
    assert {event.line.split(":")[0] for event in gpu.syncs} <= {"training/gradient_checkpointing.py"}


@pytest.mark.parametrize(
    "options, method, device, message",
    [
        ({"offload_blocks": 0.5}, "adapter", "cpu", "offload_blocks=0.5: .* use offload_blocks=0"),
        ({"gradient_checkpointing": "offload"}, "pipeline", "cpu", "use gradient_checkpointing=true"),
        ({"offload_blocks": 0.5}, "pipeline", "cuda", "method=lora"),
        ({"offload_blocks": 0.5, "compile": "regional"}, "adapter", "cuda", "compile=off"),
    ],
)
def test_offload_that_cannot_work_is_refused(options, method, device, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(steps=1, **options).check_offload(method, device)


def test_offload_that_works_is_accepted():
    settings = TrainingSettings(steps=1, offload_blocks=0.5, gradient_checkpointing="offload", compile="auto")
    settings.check_offload("adapter", "cuda")
    TrainingSettings(steps=1, gradient_checkpointing="offload").check_offload("pipeline", "cuda")
    for options, key in (
        ({"offload_blocks": 1.5}, "offload_blocks"),
        ({"gradient_checkpointing": "on"}, "gradient_ch"),
    ):
        with pytest.raises(ValueError, match=f"{key}.*: choose"):
            TrainingSettings(steps=1, **options)


def test_a_run_without_a_gpu_refuses_offload(run):
    assert compose_config("offload_blocks=0.5").training.offload_blocks == 0.5
    with pytest.raises(ValueError, match="offload_blocks=0.5: "):
        run("steps=1", "offload_blocks=0.5")

"""NaN/Inf steps: every rank counts the same ones, and looking for them waits for the device as little as possible."""

from types import SimpleNamespace

import torch
import torch.distributed
from torch import nn

from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.lora import LoRA
from sdft.training.callbacks.nan_check import NanCheck
from sdft.training.lr_schedule import LRSchedule
from sdft.training.module import DiffusionModule


class CountingScaler:
    """A gradient scaler whose scale halves in the second step."""

    def __init__(self):
        self.num_reads, self.scale = 0, 4.0

    def get_scale(self) -> float:
        self.num_reads += 1
        return self.scale


def build_module(tiny, **trainer) -> DiffusionModule:
    rates = {"unet": 1e-4, "clip_l": 1e-4}
    module = DiffusionModule(tiny(), LoRA(2, 2), DiffusionLoss(), torch.optim.AdamW, LRSchedule("constant"), rates)
    module._trainer = SimpleNamespace(global_step=0, **trainer)
    return module


def test_a_nan_loss_of_another_rank_is_counted_on_this_one(tiny):
    def reduce(flag, reduce_op):
        assert reduce_op == "max" and not flag
        return torch.ones_like(flag)  # of the other rank

    plugin, strategy = SimpleNamespace(scaler=CountingScaler()), SimpleNamespace(reduce=reduce)
    module = build_module(tiny, precision_plugin=plugin, strategy=strategy)
    module.has_nonfinite_loss = torch.tensor(False)
    module.configure_gradient_clipping(torch.optim.AdamW(module.get_trainable_parameters().values()))
    assert int(module.skipped_steps) == 1


def test_the_scale_is_read_once_per_step(tiny):
    scaler, advanced = CountingScaler(), []
    module = build_module(tiny, precision_plugin=SimpleNamespace(scaler=scaler))
    scheduler = SimpleNamespace(step=lambda: advanced.append(step))
    for step in range(4):
        module.on_before_optimizer_step(None)
        scaler.scale /= 1 + (step == 1)
        module.lr_scheduler_step(scheduler, None)
    assert advanced == [0, 2, 3] and scaler.num_reads == 4 + 1  # once before the first step


def test_skipped_steps_are_read_at_the_end_of_steps_only():
    class Count:
        num_reads = 0

        def __int__(self):
            self.num_reads += 1
            return 0

    count = Count()
    module = SimpleNamespace(skipped_steps=count, device=torch.device("cuda"))
    check = NanCheck("stop", 2)
    for batch_idx in range(16):
        trainer = SimpleNamespace(global_step=(batch_idx + 1) // 4, accumulate_grad_batches=4)
        check.on_train_batch_end(trainer, module, None, None, batch_idx)
    assert count.num_reads == 2  # after steps 2 and 4


def test_sharded_weights_are_left_unchanged_by_a_fused_optimizer_without_reading_the_flag(tiny, tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        layer = nn.Linear(4, 4)
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        for is_nonfinite in (False, True, False):
            layer(torch.ones(2, 4)).sum().backward()
            before = [p.full_tensor().clone() for p in layer.parameters()]
            parameters = list(layer.parameters())
            DiffusionModule.skip_nonfinite_step(None, optimizer, parameters, torch.tensor(is_nonfinite))
            assert all(p.grad is not None for p in parameters)
            optimizer.step()
            assert all(torch.equal(a, p.full_tensor()) == is_nonfinite for a, p in zip(before, parameters, strict=True))
    finally:
        torch.distributed.destroy_process_group()

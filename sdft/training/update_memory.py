"""Memory of weight updates in buckets, with and without gradients that are freed inside the backward pass."""

from collections.abc import Callable

import torch
from torch import nn

from sdft.training.bucketed_optimizer import BucketedOptimizer, get_bucket_constructor
from sdft.training.buckets import Bucket
from sdft.training.fake_tensors import FakeTensorMode, StorageCounter
from sdft.training.optimizers import build_optimizer, build_parameter_groups

BUFFER_BYTES = 8  # of the fp32 copies of a weight and of its gradient
PROBE_SIDE = 64  # of a weight; 8-bit optimizers quantize from 4096 elements


class CountedUpdates(BucketedOptimizer):
    """Updates of fake weights that only free the gradients and count the memory that an update takes in `mode`."""

    def __init__(self, groups, build: Callable, mode: FakeTensorMode, bytes_per_element: float, fused_backward: bool):
        super().__init__(groups, build, 0, fused_backward)
        self.mode, self.bytes_per_element = mode, bytes_per_element

    def build_bucket_optimizer(self, group: dict, num_buffers: int) -> None:
        """No optimizer: updates are not made."""

    def update(self, bucket: Bucket) -> None:
        sizes = [weight[rows].numel() for weight, rows in bucket.slices]
        largest = sum(sizes) if self.elementwise else max(sizes)  # which the optimizer updates at once
        copies = BUFFER_BYTES * sum(sizes)
        self.count_temporary(copies)
        self.free_gradients(bucket)
        self.count_temporary(copies + round((self.bytes_per_element - BUFFER_BYTES) * largest))
        bucket.is_updated = True

    def count_temporary(self, size: int) -> None:
        """Count bytes that exist now, beside those that `mode` counts, and are freed at once."""
        self.mode.peak_bytes = max(self.mode.peak_bytes, self.mode.current_bytes + size)


def count_updates(fake_module, mode: FakeTensorMode, update_bytes: float) -> CountedUpdates:
    """An optimizer for the backward pass of a fake module; an update takes `update_bytes` per element."""
    options, trainable = fake_module.optimizer.keywords, fake_module.get_trainable_parameters()
    get_multiplier = fake_module.method.get_lr_multiplier
    groups = build_parameter_groups(fake_module.model.parts, trainable, fake_module.lr, get_multiplier)
    updates = CountedUpdates(groups, options["build"], mode, update_bytes, options["fused_backward"])
    updates.connect(fake_module.masters.masters)
    return updates


@torch.enable_grad()
def measure_update_bytes(module) -> float:
    """Bytes per element of a bucket that an update takes while it runs; 0 if the module does not update in buckets."""
    if get_bucket_constructor(module.optimizer) is module.optimizer:
        return 0.0
    dtype = next(iter(module.get_trainable_parameters().values())).dtype
    weight = nn.Parameter(torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=dtype))
    probe = build_optimizer(module.optimizer, [{"params": [weight], "lr": 1e-3, "name": "probe"}])
    for _ in range(2):  # the first step makes the states
        weight.grad = torch.ones_like(weight)
        probe.found_inf = torch.zeros(())
        with StorageCounter() as counter:
            probe.step()
    return counter.peak_bytes / weight.numel()

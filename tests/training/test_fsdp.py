"""Sharded training on one rank, in this process; `tests/test_distributed.py` trains on two."""

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh

from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.full import FullFineTuning
from sdft.training.fit import apply_memory_format_and_compile
from sdft.training.fsdp import is_sharded, shard_model
from sdft.training.lr_schedule import LRSchedule
from sdft.training.module import DiffusionModule


def test_weights_that_will_be_sharded_stay_contiguous_on_a_gpu(tiny, tmp_path):
    """FSDP refuses channels-last weights."""
    module = DiffusionModule(
        tiny(), FullFineTuning(), DiffusionLoss(), torch.optim.AdamW, LRSchedule("constant"), {"unet": 1e-4},
        compute_dtype=torch.bfloat16, sharded=True,
    )  # fmt: skip
    apply_memory_format_and_compile(module, None, "off", torch.device("cuda"), 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        shard_model(module.model, init_device_mesh("cpu", (1,)))
        assert all(map(is_sharded, module.model.unet.parameters()))
    finally:
        torch.distributed.destroy_process_group()

"""FSDP2: shard trainable weights, gradients and optimizer states over the processes (Zhao et al., 2023).

Weights are gathered block by block during forward and backward passes, so all ranks must run the networks together.
"""

import inspect

import torch
from torch import Tensor, nn

from sdft.distributed import rank
from sdft.models.diffusion_model import DiffusionModel

LAST_LAYERS = ("final_layer_norm", "text_projection")  # of text encoders


def shard_model(model: DiffusionModel, mesh) -> None:
    """Shard the trainable parts over the processes of a device mesh, block by block.

    Weights are gathered in the model's `compute_dtype`; gradients are reduced, and shards updated, in fp32.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    dtype = None if model.compute_dtype is torch.float32 else model.compute_dtype
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    options = {"mesh": mesh, "mp_policy": precision, "reshard_after_forward": True}
    for part in model.parts.values():
        if isinstance(part, FSDPModule) or not any(p.requires_grad for p in part.parameters()):
            continue
        for block in list_blocks(part):
            fully_shard(block, **options)
        fully_shard(part, **options)  # by default a root stays gathered after inference


def list_blocks(part: nn.Module) -> list[nn.Module]:
    """The blocks of a UNet, or the layers of a text encoder, to be sharded separately.

    Also those layers of a text encoder that models call by themselves, when its other weights are sharded again.
    """
    if hasattr(part, "mid_block"):
        return [*part.down_blocks, part.mid_block, *part.up_blocks]
    layers = [layer for stack in part.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
    return layers + [layer for name, layer in part.named_modules() if name.rpartition(".")[2] in LAST_LAYERS]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a possibly sharded one; a collective call."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def match_placement(tensor: Tensor, weight: Tensor) -> Tensor:
    """`tensor` on the device of `weight`, and sharded like it."""
    if not is_sharded(weight) or is_sharded(tensor):
        return tensor.to(weight.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def unshard_model(model: DiffusionModel) -> DiffusionModel:
    """The model with full weights on rank 0, and the sharded one on other ranks; a collective call."""
    if not any(map(is_sharded, model.parameters())):
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    parts = {}
    for name, part in model.parts.items():
        parts[name] = part
        if any(map(is_sharded, part.parameters())):
            state = get_model_state_dict(part, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if rank():
                continue
            classes = inspect.getmro(type(part))  # fully_shard derives a class from the original one
            original = next(cls for cls in classes if not issubclass(cls, FSDPModule))
            build = original.from_config if hasattr(original, "from_config") else original
            with torch.random.fork_rng(devices=[]):
                parts[name] = build(part.config)
            parts[name].load_state_dict(state)
    if rank():
        return model
    return model.replace_networks(parts)

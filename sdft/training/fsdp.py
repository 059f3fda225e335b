"""FSDP2: every process keeps a part of what learns, of its gradients and of its optimizer's states (Zhao et al., 2023).

Weights come together block by block as the networks need them, so all processes must run the networks at the same time.
"""

import torch
from torch import Tensor, nn

from sdft.distributed import rank
from sdft.models.stable_diffusion import StableDiffusion


def shard_model(model: StableDiffusion, mesh) -> None:
    """Spread the parts that learn over the processes of a device mesh, a block at a time."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for part in model.parts.values():
        if isinstance(part, FSDPModule) or not any(p.requires_grad for p in part.parameters()):
            continue
        for block in list_blocks(part):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(part, mesh=mesh, reshard_after_forward=True)  # or what only looks would leave it whole


def list_blocks(part: nn.Module) -> list[nn.Module]:
    """The large pieces of a UNet or a text encoder, each of which its forward calls as a whole."""
    if hasattr(part, "mid_block"):
        return [*part.down_blocks, part.mid_block, *part.up_blocks]
    return [layer for stack in part.modules() if isinstance(stack, nn.ModuleList) for layer in stack]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of it."""
    return hasattr(tensor, "full_tensor")


def gather_full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; every process must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def match_placement(tensor: Tensor, weight: Tensor) -> Tensor:
    """Where `weight` is: on its device, and of a sharded one the same part."""
    if not is_sharded(weight) or is_sharded(tensor):
        return tensor.to(weight.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def unshard_model(model: StableDiffusion) -> StableDiffusion:
    """In the first process, the model as one alone would have it. All must ask."""
    if not any(map(is_sharded, model.parameters())):
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    parts = {}
    for name, part in model.parts.items():
        parts[name] = part
        if any(map(is_sharded, part.parameters())):
            state = get_model_state_dict(part, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if rank():
                continue
            plain = type(part).__bases__[1]  # the class that fully_shard made a sharded one of
            with torch.random.fork_rng(devices=[]):
                parts[name] = plain.from_config(part.config) if hasattr(plain, "from_config") else plain(part.config)
            parts[name].load_state_dict(state)
    if rank():
        return model
    vae, scheduler = model.vae, model.scheduler
    found = StableDiffusion(parts["unet"], vae, parts["text_encoder"], model.tokenizer, scheduler)
    found.name, found.prompt_chunks, found.base_vocabulary_size = (
        model.name,
        model.prompt_chunks,
        model.base_vocabulary_size,
    )
    return found

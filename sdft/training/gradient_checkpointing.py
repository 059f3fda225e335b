"""Gradient checkpointing of the trained networks, also for second derivatives, and offload of what it keeps."""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from sdft.models.diffusion_model import DiffusionModel
from sdft.training.fake_tensors import FakeTensor

MIN_OFFLOADED_BYTES = 2**18  # smaller activations, such as those of the text, stay on the device


def enable_gradient_checkpointing(model: DiffusionModel, offload: bool = False) -> None:
    """Recompute the activations inside the blocks in the backward pass; `offload` keeps the UNet's blocks' inputs on the CPU."""
    model.unet.enable_gradient_checkpointing(checkpoint_on_host if offload else checkpoint_block)
    for encoder in model.text_encoders.values():
        if not any(p.requires_grad for p in encoder.parameters()):
            continue
        from transformers.modeling_layers import GradientCheckpointingLayer

        encoder.activation_checkpointing_enable()
        for layer in encoder.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True  # HF only checkpoints in train mode; dropout sub-modules stay in eval


def checkpoint_block(block: nn.Module, *inputs):
    """The outputs of a block whose activations are recomputed."""
    vars(block)["is_checkpointed"] = True  # for `sdft.training.block_offload`
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=build_checkpoint_contexts)


def checkpoint_on_host(block: nn.Module, *inputs):
    """`checkpoint_block`, which keeps the inputs in CPU memory until they are needed."""
    with saved_tensors_hooks(copy_to_host, load_saved):
        return checkpoint_block(block, *inputs)


def copy_to_host(tensor: Tensor):
    """Copy a saved tensor to pinned CPU memory; return a function that copies it back.

    Both copies are queued on the stream that computes, so that neither waits and the memory of `tensor` can be reused.
    `torch.autograd.graph.save_on_cpu` would lose the memory format, on which the kernels of the recomputation depend.
    """
    if tensor.nbytes < MIN_OFFLOADED_BYTES:
        return tensor
    if isinstance(tensor, FakeTensor):  # which count only the memory of the device
        options = {"dtype": tensor.dtype, "device": tensor.device}
        return partial(torch.empty_strided, tensor.size(), tensor.stride(), **options)
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    host.copy_(tensor, non_blocking=True)
    return partial(host.to, tensor.device, non_blocking=True)


def load_saved(saved) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved()


def build_checkpoint_contexts():
    """Contexts of the forward pass and its recomputation, which must use the same attention kernel."""
    is_fused = (
        torch.backends.cuda.flash_sdp_enabled()
    )  # `sdft.losses.smooth_diffusion` turns it off for second derivatives
    return nullcontext(), nullcontext() if is_fused else ReusableMathAttention()


class ReusableMathAttention:
    """Re-enterable `sdpa_kernel`: a second derivative recomputes the forward pass twice."""

    def __enter__(self):
        self.context = sdpa_kernel(SDPBackend.MATH)
        self.context.__enter__()

    def __exit__(self, *error):
        self.context.__exit__(*error)

"""Gradient checkpointing of the trained networks, also for second derivatives."""

from contextlib import nullcontext
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from sdft.models.diffusion_model import DiffusionModel


def enable_gradient_checkpointing(model: DiffusionModel) -> None:
    """Recompute the activations inside the blocks in the backward pass."""
    model.unet.enable_gradient_checkpointing(
        partial(checkpoint, use_reentrant=False, context_fn=build_checkpoint_contexts)
    )
    for encoder in model.text_encoders.values():
        if not any(p.requires_grad for p in encoder.parameters()):
            continue
        from transformers.modeling_layers import GradientCheckpointingLayer

        encoder.activation_checkpointing_enable()
        for layer in encoder.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True  # HF only checkpoints in train mode; dropout sub-modules stay in eval


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

"""Loss scaling for networks that compute in fp16."""

from contextlib import nullcontext

import torch
from lightning.pytorch.plugins.precision import MixedPrecision


class GradientScaling(MixedPrecision):
    """Lightning's plugin without its autocast: the weights of the networks are in fp16."""

    def __init__(self, device: str = "cuda", scaler: torch.amp.GradScaler | None = None):
        super().__init__("16-mixed", device, scaler)

    def forward_context(self):
        return nullcontext()

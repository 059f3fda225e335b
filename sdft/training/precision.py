"""Precision of the networks; the optimizer updates fp32 weights (`sdft.training.master_weights`)."""

from dataclasses import dataclass

import torch

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Precision:
    """`tf32` allows TF32 in fp32 matrix products, on GPUs that support it."""

    compute_dtype: str = "float32"
    tf32: bool = False

    def __post_init__(self):
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"precision.compute_dtype={self.compute_dtype}: choose one of {', '.join(COMPUTE_DTYPES)}")

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.compute_dtype)

    @property
    def needs_grad_scaler(self) -> bool:
        """Whether gradients need loss scaling."""
        return self.compute_dtype == "float16"

    def build_plugins(self) -> list:
        """Lightning's plugin for gradient scaling; the networks need no autocast."""
        from sdft.training.gradient_scaling import GradientScaling

        return [GradientScaling()] if self.needs_grad_scaler else []

    def check_device(self, device: torch.device) -> None:
        """`ValueError` for fp16 on a device without gradient scaling: a CPU, or an Apple GPU."""
        if self.needs_grad_scaler and device.type != "cuda":
            name = "the CPU" if device.type == "cpu" else "an Apple GPU"
            raise ValueError(f"precision=fp16: not supported on {name}; choose fp32 or bf16")

    def configure_tf32(self) -> None:
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32

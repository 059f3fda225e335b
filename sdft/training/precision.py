"""Precision of frozen weights and of computation; trainable parameters are always fp32."""

from dataclasses import dataclass

import torch

LIGHTNING_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass
class Precision:
    """`tf32` allows TF32 in fp32 matrix products, on GPUs that support it."""

    compute_dtype: str = "float32"
    tf32: bool = False

    def __post_init__(self):
        if self.compute_dtype not in LIGHTNING_PRECISIONS:
            raise ValueError(
                f"precision.compute_dtype={self.compute_dtype}: choose one of {', '.join(LIGHTNING_PRECISIONS)}"
            )

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.compute_dtype)

    @property
    def needs_grad_scaler(self) -> bool:
        """Whether gradients need loss scaling."""
        return self.compute_dtype == "float16"

    @property
    def lightning_precision(self) -> str:
        """Lightning's name of the precision."""
        return LIGHTNING_PRECISIONS[self.compute_dtype]

    def check_device(self, device: torch.device) -> None:
        """`ValueError` for fp16 on a device without gradient scaling: a CPU, or an Apple GPU."""
        if self.needs_grad_scaler and device.type != "cuda":
            name = "the CPU" if device.type == "cpu" else "an Apple GPU"
            raise ValueError(f"precision=fp16: not supported on {name}; choose fp32 or bf16")

    def configure_tf32(self) -> None:
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32

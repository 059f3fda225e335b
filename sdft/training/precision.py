"""The precision that frozen weights and products are computed in; what learns is always fp32."""

from dataclasses import dataclass

import torch

TRAINER = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass
class Precision:
    """`tf32` lets fp32 products use the shorter TF32 mantissa on GPUs that have it."""

    compute: str = "float32"
    tf32: bool = False

    def __post_init__(self):
        if self.compute not in TRAINER:
            raise ValueError(f"precision.compute={self.compute}: choose one of {', '.join(TRAINER)}")

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.compute)

    @property
    def scaled(self) -> bool:
        """Whether gradients need a scaler."""
        return self.compute == "float16"

    @property
    def trainer(self) -> str:
        """What Lightning calls it."""
        return TRAINER[self.compute]

    def check(self, accelerator: str) -> None:
        if self.compute == "float16" and accelerator == "cpu":
            raise ValueError("precision=fp16: CPUs cannot train in it; choose fp32 or bf16")

    def apply(self) -> None:
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32

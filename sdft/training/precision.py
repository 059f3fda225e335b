"""Precision of the networks; the optimizer updates fp32 weights (`sdft.training.master_weights`)."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from sdft.runs.run_config import CONFIG_FILE, read_stored_config

COMPUTE_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # names in `conf/precision`
AUTO = "auto"


@dataclass
class Precision:
    """`tf32` allows TF32 in fp32 matrix products, on GPUs that support it. `resolve` replaces auto, and a `tf32` of None.

    Without `master_weights`, updates of bf16 weights are rounded stochastically (`sdft.training.stochastic_rounding`).
    """

    compute_dtype: str = "float32"
    tf32: bool | None = False
    master_weights: bool = True

    def __post_init__(self):
        if self.compute_dtype not in (choices := (AUTO, *COMPUTE_DTYPES)):
            raise ValueError(f"precision.compute_dtype={self.compute_dtype}: choose one of {', '.join(choices)}")
        if not self.master_weights and self.compute_dtype != "bfloat16":
            raise ValueError(
                f"precision.master_weights=false: requires compute_dtype=bfloat16, not {self.compute_dtype}; "
                "use precision=bf16_weights"
            )

    def resolve(self, device: torch.device) -> "Precision":
        """The precision for a device: bf16 on GPUs that compute it natively, else fp32; TF32 is allowed on GPUs."""
        is_gpu, dtype = device.type == "cuda", self.compute_dtype
        if dtype == AUTO:
            has_bf16 = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = "bfloat16" if has_bf16 else "float32"
        return replace(self, compute_dtype=dtype, tf32=is_gpu if self.tf32 is None else self.tf32)

    def resolve_in_config(self, cfg: DictConfig, device: torch.device) -> "Precision":
        """The precision of a run, also in its config: for the device, or as in the run that it resumes or reproduces."""
        precision = self
        if self.compute_dtype == AUTO or self.tf32 is None:
            folders = [Path(folder).expanduser() for folder in (cfg.resume, cfg.reproduce) if folder]
            stored = [
                read_stored_config(folder).get("precision") for folder in folders if (folder / CONFIG_FILE).is_file()
            ]
            if stored and isinstance(stored[0], dict):
                precision = Precision(
                    **{key: stored[0][key] for key in ("compute_dtype", "tf32", "master_weights") if key in stored[0]}
                )
            precision = precision.resolve(device)
            cfg.precision.compute_dtype, cfg.precision.tf32 = precision.compute_dtype, precision.tf32
        return precision

    @property
    def name(self) -> str:
        """The name in `conf/precision`."""
        return COMPUTE_DTYPES[self.compute_dtype] if self.master_weights else "bf16_weights"

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

"""Training settings: steps, epochs, learning rates and intervals."""

import re
from dataclasses import dataclass, field
from pathlib import Path

COMPILE_MODES = ("off", "regional", "auto", "graphs")


@dataclass
class TrainingSettings:
    """Counts are optimizer steps; `steps` overrides `epochs`. `scale_lr` multiplies learning rates by the samples per step."""

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    lr: float = 1e-4
    text_encoder_lr: float = 1e-4
    part_lr: dict[str, float | None] = field(default_factory=dict)
    max_grad_norm: float = 1.0
    on_nan: str = "stop"
    ema: float = 0.0
    workers: int = 0
    log_every: int = 10
    sample_every: int = 0
    validate_every: int | None = None
    evaluate_every: int = 0
    evaluate_images: int = 4
    checkpoint_metric: str | None = None
    patience: int = 0
    save_every: int | str = 0
    checkpoints_total_limit: int = 1
    resume: str | None = None
    scale_lr: bool = False
    gradient_checkpointing: bool | str = False
    offload_blocks: float = 0.0
    fused_backward: bool = False
    compile: str = "off"
    seed: int = 0

    def __post_init__(self):
        if not self.steps and not self.epochs:
            raise ValueError(f"steps={self.steps} epochs={self.epochs}: set one of them to 1 or more")
        for key, minimum in MIN_VALUES.items():
            if isinstance(value := getattr(self, key), int | float) and value < minimum:
                raise ValueError(f"{key}={value}: choose {minimum} or more")
        for key, maximum in MAX_VALUES.items():
            if getattr(self, key) > maximum:
                raise ValueError(f"{key}={getattr(self, key)}: choose {maximum} or less")
        self.part_lr = {part: float(rate) for part, rate in self.part_lr.items() if rate is not None}
        for part, rate in self.part_lr.items():
            if rate < 0:
                raise ValueError(f"part_lr.{part}={rate}: choose 0 or more")
        if not any((self.lr, self.text_encoder_lr, *self.part_lr.values())):
            raise ValueError(f"lr={self.lr} text_encoder_lr={self.text_encoder_lr}: set one of them above 0")
        if self.on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan={self.on_nan}: choose stop or skip")
        if isinstance(self.save_every, str) and not self.get_save_interval_seconds():
            raise ValueError(f"save_every={self.save_every}: choose a number of steps, or of minutes such as 10min")
        if self.compile not in COMPILE_MODES:
            raise ValueError(f"compile={self.compile}: choose one of {', '.join(COMPILE_MODES)}")
        if self.gradient_checkpointing not in (False, True, "offload"):
            raise ValueError(f"gradient_checkpointing={self.gradient_checkpointing}: choose true, false or offload")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: choose 0 (off), or a decay below 1 such as 0.999")

        if (self.checkpoint_metric or self.patience) and not self.evaluate_every:
            raise ValueError(
                f"checkpoint_metric={self.checkpoint_metric} patience={self.patience}: requires evaluate_every=N"
            )
        if self.patience and not self.checkpoint_metric:
            raise ValueError(f"patience={self.patience}: requires checkpoint_metric, such as CLIP-I")

    def check_offload(self, output_kind: str, device_type: str) -> None:
        """`ValueError` for offload to CPU memory that cannot work with the method, by its `output_kind`, or the device."""
        options = {"offload_blocks": self.offload_blocks, "gradient_checkpointing": self.gradient_checkpointing}
        for key, value in options.items():
            if value and value is not True and device_type != "cuda":
                instead = {"offload_blocks": "0", "gradient_checkpointing": "true"}[key]
                raise ValueError(f"{key}={value}: moves memory of a GPU, and this run has none; use {key}={instead}")
        if self.offload_blocks and output_kind == "pipeline":
            raise ValueError(
                f"offload_blocks={self.offload_blocks}: keeps frozen weights, and the method trains them; "
                "use offload_blocks=0, or an adapter such as method=lora"
            )
        if self.offload_blocks and self.compile not in ("off", "auto"):
            raise ValueError(
                f"offload_blocks={self.offload_blocks}: compile={self.compile} needs weights in one place; use compile=off"
            )

    def get_part_lr(self, model) -> dict[str, float]:
        """The learning rate of each part of a model; `ValueError` for a part that it does not have."""
        for part in self.part_lr.keys() - model.parts.keys():
            raise ValueError(
                f"part_lr.{part}={self.part_lr[part]}: {model.name} has the parts {', '.join(model.parts)}"
            )
        default = {part: self.text_encoder_lr if part in model.text_encoders else self.lr for part in model.parts}
        return default | self.part_lr

    def check_trained_parts(self, rates: dict[str, float]) -> None:
        """`ValueError` for a rate of a part not in `rates`, those of the trained parts, and if none of them is above 0."""
        for part, rate in self.part_lr.items():
            if part not in rates:
                raise ValueError(f"part_lr.{part}={rate}: the method trains {', '.join(rates)} only")
        if not any(rates.values()):
            options = " or ".join(f"part_lr.{part}" for part in rates)
            raise ValueError(f"{options}: 0, and the method trains nothing else; choose more than 0")

    def count_steps(self, plan) -> int:
        """Optimizer steps of the run; `plan` counts those of the epochs."""
        return self.steps or plan.count_steps(self.epochs)

    def get_save_interval_seconds(self) -> float:
        """`save_every` in seconds; 0 when it is a number of steps."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?min", str(self.save_every))
        return 60 * float(match[1]) if match else 0.0

    def get_save_interval_steps(self) -> int:
        """`save_every` in steps; 0 when it is a duration."""
        return self.save_every if isinstance(self.save_every, int) else 0

    def find_checkpoint(self, folder: Path | None = None) -> Path | None:
        """The checkpoint to resume from: the file itself, or the latest intact one of a run folder.

        None, to start from step 0, when `resume` is the run's own `folder` and has no checkpoint.
        """
        if self.resume is None:
            return None
        from sdft.runs.checkpoint_file import find_damage, find_latest_checkpoint

        path = Path(self.resume).expanduser()
        if folder and path.is_dir() and path.samefile(folder):
            return find_latest_checkpoint(path / "checkpoints")
        if path.is_file() and (damage := find_damage(path)):
            raise ValueError(
                f"resume={self.resume}: {damage}; choose another, or the run folder for its latest intact checkpoint"
            )
        checkpoint = path if path.is_file() else find_latest_checkpoint(path / "checkpoints")
        if not checkpoint:
            raise ValueError(f"resume={self.resume}: no checkpoint; choose a .ckpt file, or a run folder that has one")
        return checkpoint

    def samples_per_step(self, world_size: int) -> int:
        return self.batch_size * self.gradient_accumulation_steps * world_size


MIN_VALUES = {
    "steps": 1, "epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "lr": 0, "text_encoder_lr": 0, "max_grad_norm": 0,
    "workers": 0, "log_every": 1, "sample_every": 0, "validate_every": 0, "save_every": 0, "checkpoints_total_limit": 1,
    "evaluate_every": 0, "evaluate_images": 1, "patience": 0, "seed": 0, "offload_blocks": 0,
}  # fmt: skip
MAX_VALUES = {
    "offload_blocks": 1,
    "batch_size": 2**16,
    "gradient_accumulation_steps": 2**16,
    "workers": 2**10,
}  # larger values are typing errors

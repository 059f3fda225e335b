"""The arithmetic of a run: steps, epochs, rates, and how often things happen."""

import re
from dataclasses import dataclass
from pathlib import Path

COMPILE_MODES = ("off", "regional", "auto")


@dataclass
class TrainingSettings:
    """Counts are optimizer steps; `steps` wins over `epochs`. `scale_lr` multiplies the rates by the samples of a step."""

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    lr: float = 1e-4
    text_encoder_lr: float = 1e-4
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
    gradient_checkpointing: bool = False
    compile: str = "off"
    seed: int = 0

    def __post_init__(self):
        if not self.steps and not self.epochs:
            raise ValueError(f"steps={self.steps} epochs={self.epochs}: give one of them, 1 or more")
        for key, least in MIN_VALUES.items():
            if isinstance(value := getattr(self, key), int | float) and value < least:
                raise ValueError(f"{key}={value}: choose {least} or more")
        for key, most in MAX_VALUES.items():
            if getattr(self, key) > most:
                raise ValueError(f"{key}={getattr(self, key)}: choose {most} or less")
        if not self.lr and not self.text_encoder_lr:
            raise ValueError(
                f"lr={self.lr} text_encoder_lr={self.text_encoder_lr}: nothing would learn; choose more than 0 for one of them"
            )
        if self.on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan={self.on_nan}: choose stop or skip")
        if isinstance(self.save_every, str) and not self.get_save_interval_seconds():
            raise ValueError(f"save_every={self.save_every}: choose steps, or minutes such as 10min")
        if self.compile not in COMPILE_MODES:
            raise ValueError(f"compile={self.compile}: choose one of {', '.join(COMPILE_MODES)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: choose 0 (off), or a decay below 1 such as 0.999")

        if (self.checkpoint_metric or self.patience) and not self.evaluate_every:
            raise ValueError(
                f"checkpoint_metric={self.checkpoint_metric} patience={self.patience}: give evaluate_every=N too"
            )
        if self.patience and not self.checkpoint_metric:
            raise ValueError(f"patience={self.patience}: give checkpoint_metric=… to wait for, such as CLIP-I")

    def count_steps(self, plan) -> int:
        """Optimizer steps of the run; `plan` knows how many an epoch takes."""
        return self.steps or plan.count_steps(self.epochs)

    def get_save_interval_seconds(self) -> float:
        """Of `save_every` in minutes; 0 of one in steps."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?min", str(self.save_every))
        return 60 * float(found[1]) if found else 0.0

    def get_save_interval_steps(self) -> int:
        return self.save_every if isinstance(self.save_every, int) else 0

    def find_checkpoint(self, folder: Path | None = None) -> Path | None:
        """The checkpoint to go on from: the file itself, or the newest of a run folder that is whole.

        The run in `folder` goes on by itself, without one from its start.
        """
        if self.resume is None:
            return None
        from sdft.runs.checkpoint_file import find_damage, find_latest_checkpoint

        given = Path(self.resume).expanduser()
        if folder and given.is_dir() and given.samefile(folder):
            return find_latest_checkpoint(given / "checkpoints")
        if given.is_file() and (fault := find_damage(given)):
            raise ValueError(
                f"resume={self.resume}: {fault}; give another, or the run's folder for its newest whole one"
            )
        found = given if given.is_file() else find_latest_checkpoint(given / "checkpoints")
        if not found:
            raise ValueError(
                f"resume={self.resume}: no checkpoint there; give a .ckpt file, or a run folder that has one"
            )
        return found

    def samples_per_step(self, world: int) -> int:
        return self.batch_size * self.gradient_accumulation_steps * world


MIN_VALUES = {
    "steps": 1, "epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "lr": 0, "text_encoder_lr": 0, "max_grad_norm": 0,
    "workers": 0, "log_every": 1, "sample_every": 0, "validate_every": 0, "save_every": 0, "checkpoints_total_limit": 1,
    "evaluate_every": 0, "evaluate_images": 1, "patience": 0, "seed": 0,
}  # fmt: skip
MAX_VALUES = {
    "batch_size": 2**16,
    "gradient_accumulation_steps": 2**16,
    "workers": 2**10,
}  # beyond it a slip of the keyboard

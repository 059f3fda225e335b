"""Report steps skipped for a NaN/Inf loss or gradient, with their images and timesteps."""

import torch

from sdft.rng import Draw
from sdft.runs.terminal import print_text
from sdft.training.callbacks.base import RunCallback

MAX_LISTED_SAMPLES = 8  # images per message


class NanCheck(RunCallback):
    """`on_nan`: `stop` ends the run, `skip` counts the skipped steps.

    On a GPU it checks every `every` steps only: the module already skips the update.
    """

    def __init__(self, on_nan: str, every: int):
        self.on_nan, self.every = on_nan, every
        self.num_reported = 0  # skipped steps

    def setup(self, trainer, module, stage):
        super().setup(trainer, module, stage)
        self.samples = trainer.datamodule.samples

    @property
    def state_key(self) -> str:
        return "nan_check"

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        is_step_end = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if is_step_end and (trainer.global_step % self.every == 0 or module.device.type == "cpu"):
            self.report_skipped_steps(trainer, module)

    def on_train_end(self, trainer, module):
        self.report_skipped_steps(trainer, module)

    def report_skipped_steps(self, trainer, module) -> None:
        """Log new skipped steps; `ValueError` with `on_nan=stop`."""
        if module.skipped_steps is None or (num_skipped := int(module.skipped_steps)) == self.num_reported:
            return
        step = int(module.last_skipped_step)
        if self.on_nan == "stop":
            raise ValueError(
                f"{self.describe_step(module, step)}; the weights were not updated, {self.describe_last_checkpoint()}; "
                "lower lr, or check these images"
            )
        if not self.num_reported and trainer.is_global_zero:
            message = f"{self.describe_step(module, step)}; step skipped, further skips are counted in train/skipped"
            print_text(f"warning    {message}", flush=True)
        self.num_reported = num_skipped
        for logger in trainer.loggers:
            logger.log_metrics({"train/skipped": num_skipped}, trainer.global_step)

    def state_dict(self):
        return {"num_reported": self.num_reported}

    def load_state_dict(self, state):
        self.num_reported = state["num_reported"]

    def describe_step(self, module, step: int) -> str:
        """The problem, with the image names and timesteps of the step's samples."""
        dataset = self.samples.datasets[0]
        numbers = dataset.plan.sample_numbers(step)
        first = numbers[:MAX_LISTED_SAMPLES]
        draws = torch.cat([dataset.draw_uniform(number, Draw.TIMESTEP) for number in first])
        timesteps = module.timestep_sampling(module.model.noise_process, draws).tolist()
        names = [dataset.source[dataset.plan.image_index(number)].name for number in first]
        listed = [f"{name} at timestep {timestep}" for name, timestep in zip(names, timesteps, strict=True)]
        more = f" and {len(numbers) - len(first)} more" if len(numbers) > len(first) else ""
        return f"step {step + 1}: NaN/Inf loss or gradient; {', '.join(listed)}{more}"

    def describe_last_checkpoint(self) -> str:
        from sdft.runs.checkpoint_file import find_latest_checkpoint

        checkpoint = find_latest_checkpoint(self.folder / "checkpoints")
        return f"the last checkpoint is {checkpoint}" if checkpoint else "no checkpoint was saved (save_every=N)"

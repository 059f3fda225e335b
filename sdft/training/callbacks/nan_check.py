"""A gradient that is no number changes no weight, and is told with the pictures and timesteps that it came from."""

from pathlib import Path

from lightning import Callback

MAX_LISTED_SAMPLES = 8  # pictures named at most


class NanCheck(Callback):
    """`on_nan`: stop ends the run, skip goes on and counts. On a GPU it looks every `every` steps: the weights wait untouched."""

    def __init__(self, samples, on_nan: str, every: int, folder: Path):
        self.samples, self.on_nan, self.every, self.folder = samples, on_nan, every, folder
        self.known = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0 or module.device.type == "cpu":
            self.look(trainer, module)

    def on_train_end(self, trainer, module):
        self.look(trainer, module)

    def look(self, trainer, module) -> None:
        if module.skipped_steps is None or (count := int(module.skipped_steps)) == self.known:
            return
        told = f"step {int(module.last_skipped_step) + 1}: loss or gradient is no number; {self.batch(int(module.last_skipped_step))}"
        if self.on_nan == "stop":
            raise ValueError(f"{told}; that step changed no weight, {self.kept()}; lower lr, or look at these pictures")
        if not self.known and trainer.is_global_zero:
            print(f"warning  {told}; left out, as every one from here on (train/skipped)", flush=True)
        self.known = count
        for logger in trainer.loggers:
            logger.log_metrics({"train/skipped": count}, trainer.global_step)

    def state_dict(self):
        return {"known": self.known}

    def load_state_dict(self, state):
        self.known = state["known"]

    def batch(self, step: int) -> str:
        """Pictures and timesteps of a step's samples."""
        samples = self.samples.datasets[0]
        numbers = samples.plan.sample_numbers(step)
        shown = [
            f"{samples.source[samples.plan.image_index(number)].name} at timestep {int(samples.timestep(number))}"
            for number in numbers[:MAX_LISTED_SAMPLES]
        ]
        return ", ".join(shown) + (
            f" and {len(numbers) - MAX_LISTED_SAMPLES} more" if len(numbers) > MAX_LISTED_SAMPLES else ""
        )

    def kept(self) -> str:
        from sdft.runs.checkpoint_file import find_latest_checkpoint

        found = find_latest_checkpoint(self.folder / "checkpoints")
        return f"the last checkpoint is {found}" if found else "no checkpoint was saved (save_every=N)"

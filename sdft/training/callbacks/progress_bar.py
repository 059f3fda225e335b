"""Progress bar with steps, loss, images per second and remaining time; without a terminal, a line at intervals."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sdft.runs.terminal import print_text
from sdft.training.callbacks.base import RunCallback

LINE_INTERVAL_SECONDS = 30
BAR_INTERVAL_SECONDS = 0.1


class ProgressBar(RunCallback):
    def on_train_start(self, trainer, module):
        console = Console(stderr=False)
        self.last_time = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(30),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal or trainer.global_rank > 0,
        )
        self.bar.start()
        self.task = self.bar.add_task(
            "", total=trainer.max_steps, completed=trainer.global_step, metrics=self.format_metrics()
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = time.monotonic()
        if now - self.last_time <= (LINE_INTERVAL_SECONDS if self.bar.disable else BAR_INTERVAL_SECONDS):
            return
        self.last_time = now
        self.update_bar(trainer)
        if self.bar.disable and trainer.global_rank == 0:
            print_text(f"{trainer.global_step}/{trainer.max_steps}  {self.format_metrics()}", flush=True)

    def update_bar(self, trainer) -> None:
        self.bar.update(self.task, completed=trainer.global_step, metrics=self.format_metrics())

    def format_metrics(self) -> str:
        last = self.training_metrics.last
        speed = f"{last['images_per_second']:.1f} img/s · " if "images_per_second" in last else ""
        return f"loss {last['loss']:.4f} · {speed}" if last else "warming up · "

    def on_train_end(self, trainer, module):
        self.update_bar(trainer)
        self.bar.stop()

    def on_exception(self, trainer, module, exception):
        if hasattr(self, "bar"):
            self.bar.stop()

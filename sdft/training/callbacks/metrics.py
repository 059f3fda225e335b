"""What a run measures: loss, also by timestep quarter, gradient norm, rates, speed, memory; one device sync a report."""

import sys
import time
from contextlib import contextmanager

import torch
from lightning import Callback

NUM_TIMESTEP_QUARTERS = 4


class TrainingMetrics(Callback):
    """Sums stay on the device between reports. Time spent under `paused` and in the first steps does not count as speed."""

    def __init__(self, every: int):
        self.every, self.last, self.idle = every, {}, 0.0
        self.steps, self.seconds = 0, 0.0  # optimizer steps and the time they took, without the first
        self.last_report_step = 0  # step
        self.before, self.resumed = 0.0, None  # seconds, and sums, of an earlier process

    def on_train_start(self, trainer, module):
        self.began, self.trainer = time.perf_counter(), trainer
        self.first_batch = trainer.global_step * trainer.accumulate_grad_batches
        self.timesteps = len(module.model.alphas_cumprod)
        self.restart(module.device)
        if self.resumed is not None and trainer.is_global_zero:
            self.sums += torch.tensor(self.resumed, device=module.device)

    def get_elapsed_seconds(self) -> float:
        """Seconds of training, those before a resume among them."""
        return self.before + time.perf_counter() - self.began

    def state_dict(self):
        sums = self.trainer.strategy.reduce(self.sums.clone(), reduce_op="sum").tolist()
        plain = {key: getattr(self, key) for key in ("last", "steps", "seconds", "last_report_step")}
        return plain | {"sums": sums, "elapsed": self.get_elapsed_seconds()}

    def load_state_dict(self, state):
        for key in ("last", "steps", "seconds", "last_report_step"):
            setattr(self, key, state[key])
        self.resumed, self.before = state["sums"], state["elapsed"]

    def restart(self, device) -> None:
        self.sums, self.of_step = (torch.zeros(NUM_TIMESTEP_QUARTERS, 2, device=device) for _ in range(2))
        self.restart_clock()

    def restart_clock(self) -> None:
        self.images, self.taken, self.idle, self.since = 0, 0, 0.0, time.perf_counter()

    @contextmanager
    def pause_clock(self):
        start = time.perf_counter()
        yield
        self.idle += time.perf_counter() - start

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        quarter = outputs["timestep"] * NUM_TIMESTEP_QUARTERS // self.timesteps
        counted = (batch["sample_weight"] > 0).float()  # a sample that only fills a short step does not count
        losses = torch.stack([outputs["losses"] * batch["weight"] * counted, counted], 1)
        self.of_step.index_add_(0, quarter, losses)
        self.images += len(quarter) * trainer.world_size
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.sums += self.of_step  # of whole steps alone, as checkpoints hold them
        self.of_step.zero_()
        self.taken += 1
        first = batch_idx < self.first_batch + trainer.accumulate_grad_batches
        if first and self.every > 1:
            self.restart_clock()  # it warms up
        if trainer.global_step % self.every == 0:
            self.report(trainer, module, counts=not first)

    def on_train_end(self, trainer, module):
        if trainer.global_step != self.last_report_step:  # in all processes, whoever has samples that count
            self.report(trainer, module)

    def report(self, trainer, module, counts: bool = True) -> None:
        """Read the sums, which waits for the device, and hand them to every logger; `counts` as time of the run's steps."""
        self.last_report_step = trainer.global_step
        totals, numbers = trainer.strategy.reduce(self.sums, reduce_op="sum").T.tolist()
        seconds = time.perf_counter() - self.since - self.idle
        if counts:
            self.steps, self.seconds = self.steps + self.taken, self.seconds + seconds
        self.last = {"loss": sum(totals) / sum(numbers)}
        if self.images:
            self.last["images_per_second"] = self.images / seconds
        self.last |= {f"loss_quarter_{q + 1}": t / n for q, (t, n) in enumerate(zip(totals, numbers, strict=True)) if n}
        self.last["grad_norm"] = float(module.grad_norm)
        self.last |= {
            f"lr_{group['name']}": group["lr"] * group.get("d", 1) for group in trainer.optimizers[0].param_groups
        }
        self.last["memory_gb"] = get_peak_memory_gb(module.device)
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{key}": value for key, value in self.last.items()}, trainer.global_step)
        self.restart(module.device)


def get_peak_memory_gb(device: torch.device) -> float:
    """Peak so far: of the device, or of this process when it computes on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return float("nan")
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

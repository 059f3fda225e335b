"""Training metrics: loss (also by timestep quarter), gradient norm, learning rates, speed, memory; one device sync per report."""

import sys
import time
from contextlib import contextmanager

import torch
from lightning import Callback
from torch import Tensor

NUM_TIMESTEP_QUARTERS = 4
MAX_PENDING = 1000  # micro-batches whose losses are not summed yet
SUMMED = ("losses", "timestep", "weight", "sample_weight")  # weights that are 1 may be absent
STORED_ATTRIBUTES = ("last", "rates", "steps", "seconds", "last_report_step")


class TrainingMetrics(Callback):
    """Losses stay on the device, unsummed, between reports. Speed excludes the first step and time spent in `pause_clock`."""

    def __init__(self, every: int):
        self.every, self.last, self.paused_seconds = every, {}, 0.0
        self.rates: dict[str, float] = {}  # of the last step, by parameter group
        self.steps, self.seconds = 0, 0.0  # optimizer steps and their duration, without the first
        self.last_report_step = 0
        self.previous_seconds, self.resumed_sums = 0.0, None  # of the resumed process

    @property
    def state_key(self) -> str:
        return "training_metrics"

    def on_train_start(self, trainer, module):
        self.start_time, self.trainer, self.device = time.perf_counter(), trainer, module.device
        self.first_batch = trainer.global_step * trainer.accumulate_grad_batches
        self.num_timesteps = module.model.noise_process.num_timesteps
        self.reset_sums()
        if self.resumed_sums is not None and trainer.is_global_zero:
            self.sums += torch.tensor(self.resumed_sums)

    def get_elapsed_seconds(self) -> float:
        """Seconds of training, including those before a resume."""
        return self.previous_seconds + time.perf_counter() - self.start_time

    def state_dict(self):
        plain = {key: getattr(self, key) for key in STORED_ATTRIBUTES}
        return plain | {"sums": self.reduce_sums(), "elapsed": self.get_elapsed_seconds()}

    def load_state_dict(self, state):
        for key in STORED_ATTRIBUTES:
            setattr(self, key, state[key])
        self.resumed_sums, self.previous_seconds = state["sums"], state["elapsed"]

    def reset_sums(self) -> None:
        """Reset the sums, `[quarter, (loss, count)]`, on the CPU, and the clock."""
        self.sums = torch.zeros(NUM_TIMESTEP_QUARTERS, 2)
        self.pending: list[dict[str, Tensor]] = []  # `SUMMED` values of micro-batches, on the device
        self.num_complete = 0  # of them, in complete steps
        self.reset_clock()

    def add_pending(self) -> None:
        """Add the losses of complete steps to the sums in the order of the samples; one device sync."""
        complete, self.pending = self.pending[: self.num_complete], self.pending[self.num_complete :]
        self.num_complete = 0
        if not complete:
            return
        names = [name for name in SUMMED if any(name in part for part in complete)]
        rows = [torch.cat([p[name] if name in p else torch.ones_like(p["losses"]) for p in complete]) for name in names]
        values = dict(zip(names, torch.stack(rows).cpu(), strict=True))
        ones = torch.ones_like(values["losses"])
        is_counted = (values.get("sample_weight", ones) > 0).float()  # zero-weight samples only pad an incomplete step
        losses = values["losses"] * values.get("weight", ones) * is_counted
        quarter = values["timestep"].long() * NUM_TIMESTEP_QUARTERS // self.num_timesteps
        self.sums.index_add_(0, quarter, torch.stack([losses, is_counted], 1))

    def reduce_sums(self) -> list[list[float]]:
        """The sums over complete steps and all ranks; collective."""
        self.add_pending()
        return self.trainer.strategy.reduce(self.sums.to(self.device, copy=True), reduce_op="sum").tolist()

    def reset_clock(self) -> None:
        self.images, self.steps_since_reset = 0, 0
        self.paused_seconds, self.clock_start = 0.0, time.perf_counter()

    @contextmanager
    def pause_clock(self):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.paused_seconds += time.perf_counter() - start

    def on_before_optimizer_step(self, trainer, module, optimizer):
        """Read the rates of this step: the schedule, and Prodigy's `d`, advance before the step is reported."""
        self.rates = {f"lr_{group['name']}": group["lr"] * group.get("d", 1) for group in optimizer.param_groups}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        values = batch | outputs
        self.pending.append({name: values[name] for name in SUMMED if name in values})
        self.images += len(outputs["losses"]) * trainer.world_size
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.num_complete = len(self.pending)  # complete steps only, because checkpoints store their sums
        if self.num_complete >= MAX_PENDING:
            self.add_pending()
        self.steps_since_reset += 1
        is_first_step = batch_idx < self.first_batch + trainer.accumulate_grad_batches
        if is_first_step and self.every > 1:
            self.reset_clock()  # exclude warm-up
        if trainer.global_step % self.every == 0:
            self.report_metrics(trainer, module, count_time=not is_first_step)

    def on_train_end(self, trainer, module):
        if trainer.global_step != self.last_report_step:  # the same on all ranks, as `reduce` is collective
            self.report_metrics(trainer, module)

    def report_metrics(self, trainer, module, count_time: bool = True) -> None:
        """Read the sums (a device sync) and pass the metrics to every logger; `count_time` adds to the run's time per step."""
        self.last_report_step = trainer.global_step
        totals, counts = zip(*self.reduce_sums(), strict=True)
        seconds = time.perf_counter() - self.clock_start - self.paused_seconds
        if count_time:
            self.steps, self.seconds = self.steps + self.steps_since_reset, self.seconds + seconds
        self.last = {"loss": sum(totals) / sum(counts)}
        if self.images:
            self.last["images_per_second"] = self.images / seconds
        self.last |= {f"loss_quarter_{q + 1}": t / n for q, (t, n) in enumerate(zip(totals, counts, strict=True)) if n}
        self.last |= {"grad_norm": float(module.grad_norm), **self.rates}
        self.last["memory_gb"] = get_peak_memory_gb(module.device)
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{key}": value for key, value in self.last.items()}, trainer.global_step)
        self.reset_sums()


def get_peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GiB: of the device, or of this process on the CPU; NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return float("nan")
    import resource

    unit = 2**30 if sys.platform == "darwin" else 2**20  # `ru_maxrss` is in bytes on macOS, in kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

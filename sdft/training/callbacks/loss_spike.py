"""Warn about loss spikes as they happen: the learning rate may be too high, or some images unlike the others."""

import math
from collections import deque
from statistics import median

from sdft.runs.terminal import print_text
from sdft.training.callbacks.base import RunCallback

HISTORY_SIZE = 50  # reports
MIN_HISTORY = 10  # reports before any loss counts as a spike
MAX_DEVIATIONS = (
    6  # of the log loss above its median, in standard deviations estimated from the median absolute deviation
)
MIN_SPIKE_RATIO = 2  # to the highest loss of the history: losses of single images vary a thousandfold


class LossSpikeWarning(RunCallback):
    """Warn once per spike, which ends with the next normal report. Losses of a spike do not enter the history."""

    def __init__(self):
        self.history = deque(maxlen=HISTORY_SIZE)
        self.spike_length, self.last_step = 0, 0  # in reports; of the last report

    @property
    def state_key(self) -> str:
        return "loss_spike"

    def on_train_start(self, trainer, module):
        self.last_step = self.training_metrics.last_report_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.training_metrics.last_report_step == self.last_step:
            return
        self.last_step, loss = self.training_metrics.last_report_step, self.training_metrics.last["loss"]
        if not 0 < loss < math.inf:
            return  # NaN/Inf is reported by NanCheck
        if not self.is_spike(loss):
            self.history.append(loss)
            self.spike_length = 0
            return
        self.spike_length += 1
        if self.spike_length == 1:
            self.warn_spike(trainer, loss)
        elif self.spike_length == MIN_HISTORY:  # the new level is normal from now on
            self.history.clear()
            self.spike_length = 0

    def is_spike(self, loss: float) -> bool:
        if len(self.history) < MIN_HISTORY:
            return False
        logs = [math.log(value) for value in self.history]
        center = median(logs)
        deviation = 1.4826 * median(abs(value - center) for value in logs)
        return math.log(loss) > center + MAX_DEVIATIONS * deviation and loss > MIN_SPIKE_RATIO * max(self.history)

    def warn_spike(self, trainer, loss: float) -> None:
        ratio = loss / median(self.history)
        if trainer.is_global_zero:
            print_text(
                f"warning    step {self.last_step}: loss {loss:.4g} is {ratio:.1f} times its median {median(self.history):.4g}; "
                "if it stays high, lower lr",
                flush=True,
            )
        for logger in trainer.loggers:
            logger.log_metrics({"train/spike": ratio}, self.last_step)

    def state_dict(self):
        return {"history": list(self.history), "spike_length": self.spike_length}

    def load_state_dict(self, state):
        self.history, self.spike_length = deque(state["history"], maxlen=HISTORY_SIZE), state["spike_length"]

"""A loss far above what it was is told while it happens: too high a rate, or pictures that are not like the others."""

import math
from collections import deque
from statistics import median

from lightning import Callback

from sdft.training.callbacks.metrics import TrainingMetrics

HISTORY_SIZE = 50  # reports
MIN_HISTORY = 10  # of them, before anything counts as unusual
MAX_DEVIATIONS = 6  # of the loss's logarithm above its median, as the median absolute deviation estimates them
MIN_SPIKE_RATIO = 2  # the highest of them, at least: losses of single pictures differ a thousandfold


class LossSpikeWarning(Callback):
    """Warns once a spike, which is over when a report is usual again. A spike is not remembered as usual."""

    def __init__(self, training_metrics: TrainingMetrics):
        self.training_metrics, self.usual, self.high, self.seen = training_metrics, deque(maxlen=HISTORY_SIZE), 0, 0

    def on_train_start(self, trainer, module):
        self.seen = self.training_metrics.last_report_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.training_metrics.last_report_step == self.seen:
            return
        self.seen, loss = self.training_metrics.last_report_step, self.training_metrics.last["loss"]
        if not 0 < loss < math.inf:
            return  # no number is another's affair
        if not self.far_above(loss):
            self.usual.append(loss)
            self.high = 0
            return
        self.high += 1
        if self.high == 1:
            self.tell(trainer, loss)
        elif self.high == MIN_HISTORY:  # it has stayed there: that is usual from now on
            self.usual.clear()
            self.high = 0

    def far_above(self, loss: float) -> bool:
        if len(self.usual) < MIN_HISTORY:
            return False
        logs = [math.log(value) for value in self.usual]
        middle = median(logs)
        deviation = 1.4826 * median(abs(value - middle) for value in logs)
        return math.log(loss) > middle + MAX_DEVIATIONS * deviation and loss > MIN_SPIKE_RATIO * max(self.usual)

    def tell(self, trainer, loss: float) -> None:
        times = loss / median(self.usual)
        if trainer.is_global_zero:
            print(
                f"warning  step {self.seen}: the loss is {loss:.4g}, {times:.1f} times its usual {median(self.usual):.4g}; "
                "if it stays so, lower lr",
                flush=True,
            )
        for logger in trainer.loggers:
            logger.log_metrics({"train/spike": times}, self.seen)

    def state_dict(self):
        return {"usual": list(self.usual), "high": self.high}

    def load_state_dict(self, state):
        self.usual, self.high = deque(state["usual"], maxlen=HISTORY_SIZE), state["high"]

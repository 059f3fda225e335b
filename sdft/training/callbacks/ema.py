"""An exponential moving average of what learns: sampled and exported in place of the raw weights, which are kept."""

from contextlib import contextmanager

import torch
from lightning import Callback
from torch import Tensor

from sdft.training.fsdp import gather_full_tensor, is_sharded, match_placement


def has_averaged_weights(optimizer) -> bool:
    """Whether an optimizer, or its class, keeps averaged weights of its own, as the schedule-free ones do."""
    return hasattr(optimizer, "eval") and hasattr(optimizer, "train")


def swap_weights(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.data = values[name]


@torch.no_grad()
def copy_weights(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Of sharded weights, whose memory others know, too."""
    for name, weight in weights.items():
        weight.copy_(values[name])


class EMA(Callback):
    """After optimizer step n the average moves by 1 - min(decay, (1 + n) / (10 + n)) towards the weights."""

    def __init__(self, decay: float):
        self.decay, self.updates, self.average = decay, 0, {}

    def on_train_start(self, trainer, module):
        self.steps = trainer.global_step
        weights = module.get_trainable_parameters()
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in weights.items()}
        self.average = {name: match_placement(average, weights[name]) for name, average in self.average.items()}
        self.weights = [weights[name] for name in self.average]

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.steps:
            return  # a micro-batch that only accumulated
        self.steps = trainer.global_step
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.weights], 1 - decay)

    @contextmanager
    def apply_averages(self, module):
        """The averaged weights, these or the optimizer's own, in the model's place; afterwards the raw ones, to the bit."""
        optimizers = [o for o in module.trainer.optimizers if has_averaged_weights(o)]
        weights = module.get_trainable_parameters() if self.average or optimizers else {}
        sharded = any(map(is_sharded, weights.values()))
        put = copy_weights if sharded else swap_weights
        raw = {name: p.detach().clone() if sharded else p.data for name, p in weights.items()}
        put(weights, self.average or {name: p.detach().clone() for name, p in weights.items()})
        for optimizer in optimizers:
            optimizer.eval()
        try:
            yield
        finally:
            for optimizer in optimizers:
                optimizer.train()
            put(weights, raw)

    def state_dict(self):
        return {
            "average": {name: gather_full_tensor(average) for name, average in self.average.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state):
        self.average, self.updates = state["average"], state["updates"]

"""Exponential moving average (EMA) of the trainable parameters, used for sampling and export; training keeps the raw weights."""

from contextlib import contextmanager

import torch
from lightning import Callback
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sdft.training.fsdp import gather_full_tensor, is_sharded, match_placement
from sdft.training.optimizers import has_averaged_weights


def swap_weights(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.data = values[name].to(weight.dtype)


@torch.no_grad()
def copy_weights(weights: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy in place, as FSDP keeps references to the memory of sharded weights."""
    for name, weight in weights.items():
        weight.copy_(values[name])


class EMA(Callback):
    """Update n, after optimizer step n, moves the average by 1 - min(decay, n / (9 + n)) towards the weights, as in diffusers.

    The first update copies them. A decay of 0 turns the average off.
    """

    def __init__(self, decay: float):
        self.decay, self.updates, self.average = decay, 0, {}

    @property
    def state_key(self) -> str:
        return "ema"

    def on_train_start(self, trainer, module):
        self.last_step = trainer.global_step
        if not self.decay:
            return
        weights = module.get_trainable_parameters()
        if not self.average:
            self.average = {name: p.detach().to(torch.float32, copy=True) for name, p in weights.items()}
        self.average = {name: match_placement(average, weights[name]) for name, average in self.average.items()}
        self.weights = [weights[name] for name in self.average]

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not self.decay or trainer.global_step == self.last_step:
            return  # gradient accumulation: no optimizer step yet
        self.last_step = trainer.global_step
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates)) if self.updates > 1 else 0.0
        update = get_ema_multi_avg_fn(decay)
        if all(p.dtype is torch.float32 for p in self.weights):
            update(list(self.average.values()), [p.detach() for p in self.weights], self.updates)
            return
        for average, p in zip(self.average.values(), self.weights, strict=True):  # one fp32 copy at a time
            update([average], [p.detach().float()], self.updates)

    @contextmanager
    def apply_averages(self, module):
        """Temporarily swap in the EMA (or schedule-free) weights; restore the raw weights exactly."""
        optimizers = [o for o in module.trainer.optimizers if has_averaged_weights(o)]
        weights = module.get_trainable_parameters() if self.average or optimizers else {}
        sharded = any(map(is_sharded, weights.values()))
        set_weights = copy_weights if sharded else swap_weights
        raw = {name: p.detach().clone() if sharded else p.data for name, p in weights.items()}
        set_weights(weights, self.average or {name: p.detach().clone() for name, p in weights.items()})
        for optimizer in optimizers:
            optimizer.eval()
        module.masters.refresh_networks()
        try:
            yield
        finally:
            for optimizer in optimizers:
                optimizer.train()
            set_weights(weights, raw)
            module.masters.refresh_networks()

    def state_dict(self):
        return {
            "average": {name: gather_full_tensor(average) for name, average in self.average.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state):
        if self.decay:
            self.average, self.updates = state["average"], state["updates"]

"""The EMA is updated on optimizer steps only, replaces the raw weights temporarily, and is checkpointed."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from sdft.training.callbacks.ema import EMA


class Module(nn.Module):
    device = torch.device("cpu")
    masters = SimpleNamespace(refresh_networks=lambda: None)

    def __init__(self, optimizers=()):
        self.__dict__["trainer"] = type("Trainer", (), {"optimizers": list(optimizers)})()
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def get_trainable_parameters(self):
        return {"weight": self.weight}


def make_trainer(step: int):
    return type("Trainer", (), {"global_step": step})()


@pytest.mark.parametrize("decay", [0.2, 0.9, 0.9999])
def test_every_update_has_the_value_of_diffusers(decay):  # pitfall 17
    module, ema = Module(), EMA(decay)
    ema.on_train_start(make_trainer(0), module)
    reference = EMAModel(module.parameters(), decay=decay)
    for step in range(1, 120):
        module.weight.data += torch.tensor([1.0, -0.3, 0.01]) / step
        ema.on_train_batch_end(make_trainer(step), module, None, None, 0)
        reference.step(module.parameters())
        assert torch.allclose(ema.average["weight"], reference.shadow_params[0], rtol=1e-5), step
    assert ema.updates == 119


def test_micro_batches_do_not_update_it():
    module, ema = Module(), EMA(0.5)
    ema.on_train_start(make_trainer(0), module)
    module.weight.data += 1
    ema.on_train_batch_end(make_trainer(0), module, None, None, 0)
    assert not ema.average["weight"].any() and ema.updates == 0


def test_raw_weights_are_restored():
    module, ema = Module(), EMA(0.9)
    ema.on_train_start(make_trainer(0), module)
    module.weight.data += 1
    with ema.apply_averages(module):
        assert not module.weight.any()
    assert module.weight.tolist() == [1, 1, 1]


def test_average_and_update_count_are_checkpointed():
    module, ema, other = Module(), EMA(0.9), EMA(0.9)
    ema.on_train_start(make_trainer(0), module)
    module.weight.data += 1
    ema.on_train_batch_end(make_trainer(1), module, None, None, 0)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.average["weight"], ema.average["weight"]) and other.updates == 1


def test_schedule_free_averages_are_applied_and_raw_weights_restored_bit_exactly():
    from schedulefree import AdamWScheduleFree

    module = Module()
    optimizer = AdamWScheduleFree([module.weight], lr=0.3)
    module.trainer.optimizers.append(optimizer)
    optimizer.train()
    for step in range(3):
        module.weight.grad = torch.tensor([1.0, -2.0, 0.3]) / (step + 1)
        optimizer.step()
    raw = module.weight.detach().clone()
    with EMA(0.0).apply_averages(module):
        assert not torch.equal(module.weight, raw)
    assert torch.equal(module.weight, raw) and optimizer.param_groups[0]["train_mode"]

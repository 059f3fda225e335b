"""Optimizers are checked before anything slow runs, and built in silence."""

from functools import partial

import torch

from sdft.training.optimizers import build_optimizer


def test_constructors_print_nothing(capsys):
    from prodigyopt import Prodigy

    constructor = partial(Prodigy, lr=1.0, weight_decay=0.01, decouple=True)
    assert isinstance(build_optimizer(constructor, [torch.nn.Parameter(torch.zeros(1))]), Prodigy)
    assert capsys.readouterr() == ("", "")

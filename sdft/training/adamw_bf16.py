"""AdamW with its two moments in bf16, rounded stochastically."""

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from sdft.training.stochastic_rounding import round_stochastically_


class AdamWBF16(Optimizer):
    """`torch.optim.AdamW`, computed in fp32; between steps the moments are in bf16, half the memory.

    Rounded to nearest, the second moment would not follow gradients: a step moves it by 1 - beta2 = 0.001 of the difference.
    """

    def __init__(self, params, lr: float = 1e-3, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})
        self.generator: Generator | None = None  # of the rounding; None: torch's own
        self.found_inf: Tensor | None = None  # 1 to skip the step, on the device

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)
        return loss

    def update(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["moments"] = torch.zeros(2, *parameter.shape, dtype=torch.bfloat16, device=parameter.device)
        moments = state["moments"].float()
        beta1, beta2 = group["betas"]
        options = {name: group[name] for name in ("lr", "weight_decay", "eps")}
        adamw(
            [parameter], [parameter.grad], [moments[0]], [moments[1]], [], [state["step"]], fused=True, amsgrad=False,
            found_inf=self.found_inf, beta1=beta1, beta2=beta2, maximize=False, **options,
        )  # fmt: skip
        state["moments"].copy_(round_stochastically_(moments, self.generator))

    def load_state_dict(self, state_dict):
        """Torch casts floating-point states to the precision of their parameter."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["moments"] = state["moments"].to(torch.bfloat16)

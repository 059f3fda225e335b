"""Stop after the first step if a trainable layer receives no gradient."""

import re
from functools import partial

from lightning import Callback
from torch import Tensor

from sdft.training.bucketed_optimizer import BucketedOptimizer
from sdft.training.fsdp import gather_full_tensor

ADAPTER_TENSOR_PATTERN = re.compile(r"\.(?:lora|hada|lokr)_")  # separates a layer's name from its adapter tensors

MAX_ZERO_GRADIENT_STEPS = 50  # where a step may lack the placeholder token, or captions


class ZeroGradientCheck(Callback):
    """`ValueError` naming a layer whose trainable tensors all have a zero gradient at the first step: it would never change."""

    def on_train_start(self, trainer, module):
        may_lack_text = module.method.output_kind == "embedding" or module.model.empty_caption == "zeros"
        self.limit = MAX_ZERO_GRADIENT_STEPS if may_lack_text else 1
        self.steps_left = self.limit if trainer.global_step == 0 else 0
        self.layers_with_gradient: set[str] = set()
        optimizers = [o for o in trainer.optimizers if isinstance(o, BucketedOptimizer)]
        is_fused = self.steps_left and any(optimizer.fused_backward for optimizer in optimizers)
        weights = (
            module.model.named_parameters() if is_fused else ()
        )  # whose gradients are gone after the backward pass
        hooks = {name: partial(self.check_gradient, get_layer_name(name)) for name, p in weights if p.requires_grad}
        self.hooks = [module.model.get_parameter(name).register_hook(hook) for name, hook in hooks.items()]

    def check_gradient(self, layer: str, gradient: Tensor) -> None:
        if layer not in self.layers_with_gradient and bool(gather_full_tensor(gradient).any()):
            self.layers_with_gradient.add(layer)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not self.steps_left:
            return
        self.steps_left -= 1
        layers = set()
        for name, p in module.get_trainable_parameters().items():
            layer = get_layer_name(name)
            layers.add(layer)
            if p.grad is not None:
                self.check_gradient(layer, p.grad)
        missing = sorted(layers - self.layers_with_gradient)
        if not missing:
            self.steps_left = 0
            for hook in self.hooks:
                hook.remove()
        elif not self.steps_left:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            steps = f"in the first {self.limit} steps" if self.limit > 1 else "at the first step"
            raise ValueError(f"{missing[0]}{more} of {len(layers)} trainable layers got no gradient {steps}")


def get_layer_name(parameter: str) -> str:
    """The layer that a parameter, or an adapter's tensor, belongs to."""
    if ADAPTER_TENSOR_PATTERN.search(parameter):
        return ADAPTER_TENSOR_PATTERN.split(parameter)[0]
    return parameter.rsplit(".", 1)[0]

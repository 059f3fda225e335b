"""Stop at the first step when something that should learn gets no gradient."""

import re

from lightning import Callback

from sdft.training.fsdp import gather_full_tensor

ADAPTER_TENSOR_PATTERN = re.compile(
    r"\.(?:lora|hada|lokr)_"
)  # what stands between a layer's name and its adapter's tensors

MAX_ZERO_GRADIENT_STEPS = {"embedding": 50}  # steps: a word is not in every caption


class ZeroGradientCheck(Callback):
    """A layer whose learned tensors all have a zero gradient at the first step would never move; the run stops and names it."""

    def on_train_start(self, trainer, module):
        self.patience = MAX_ZERO_GRADIENT_STEPS.get(module.method.output_kind, 1) if trainer.global_step == 0 else 0
        self.moved: set[str] = set()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not self.patience:
            return
        self.patience -= 1
        layers = set()
        for name, p in module.get_trainable_parameters().items():
            layer = (
                ADAPTER_TENSOR_PATTERN.split(name)[0] if ADAPTER_TENSOR_PATTERN.search(name) else name.rsplit(".", 1)[0]
            )
            layers.add(layer)
            if layer not in self.moved and p.grad is not None and bool(gather_full_tensor(p.grad).any()):
                self.moved.add(layer)
        still = sorted(layers - self.moved)
        if not still:
            self.patience = 0
        elif not self.patience:
            more = f" and {len(still) - 1} more layers" if len(still) > 1 else ""
            raise ValueError(f"{still[0]}{more} of {len(layers)} that should learn got no gradient at the first step")

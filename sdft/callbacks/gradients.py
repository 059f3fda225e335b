"""Stop at the first step when something that should learn gets no gradient."""

from lightning import Callback


class FirstGradients(Callback):
    """A layer whose learned tensors all have a zero gradient at the first step would never move; the run stops and names it."""

    def on_train_start(self, trainer, module):
        self.pending = trainer.global_step == 0

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not self.pending:
            return
        self.pending = False
        moves: dict[str, bool] = {}
        for name, p in module.learned().items():
            layer = name.split(".lora_")[0] if ".lora_" in name else name.rsplit(".", 1)[0]
            moves[layer] = moves.get(layer, False) or (p.grad is not None and bool(p.grad.any()))
        if still := [layer for layer, moving in moves.items() if not moving]:
            more = f" and {len(still) - 1} more layers" if len(still) > 1 else ""
            raise ValueError(f"{still[0]}{more} of {len(moves)} that should learn got no gradient at the first step")

"""Adapters of a model at other strengths for a while."""

from contextlib import contextmanager

from sdft.models.stable_diffusion import StableDiffusion


@contextmanager
def multiply_adapter_scales(model: StableDiffusion, factors: dict[str, float]):
    """Each adapter at `factors` times its own strength, and afterwards as they were; those at 0 take no part at all.

    For a DoRA, nothing times its change is not the layer as it was: its magnitudes would stay.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    own = [(dict(layer.scaling), list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    working = [name for name, factor in factors.items() if factor]
    for layer in layers:
        layer.scaling.update({name: value * factors.get(name, 1.0) for name, value in layer.scaling.items()})
        if working:
            layer.set_adapter(working)
        layer.enable_adapters(bool(working))
    model.requires_grad_(False)
    try:
        yield
    finally:
        for layer, (scaling, active, disabled) in zip(layers, own, strict=True):
            layer.scaling.update(scaling)
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)
        model.requires_grad_(False)

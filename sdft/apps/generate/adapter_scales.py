"""Temporarily scale the adapters of a model."""

from contextlib import contextmanager

from sdft.models.stable_diffusion import StableDiffusion


@contextmanager
def multiply_adapter_scales(model: StableDiffusion, factors: dict[str, float]):
    """Multiply each adapter's scale by its factor, and restore the scales on exit; adapters at 0 are disabled.

    Scaling a DoRA to 0 instead would not restore the base layer, since its magnitudes remain.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    states = [(dict(layer.scaling), list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    enabled = [name for name, factor in factors.items() if factor]
    for layer in layers:
        layer.scaling.update({name: value * factors.get(name, 1.0) for name, value in layer.scaling.items()})
        if enabled:
            layer.set_adapter(enabled)
        layer.enable_adapters(bool(enabled))
    model.requires_grad_(False)
    try:
        yield
    finally:
        for layer, (scaling, active, disabled) in zip(layers, states, strict=True):
            layer.scaling.update(scaling)
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)
        model.requires_grad_(False)

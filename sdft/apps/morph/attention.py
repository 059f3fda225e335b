"""Self-attention interpolation: mix keys and values recorded from two endpoint images (DiffMorpher, 2023)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from sdft.apps.morph.interpolation import lerp

KEY_VALUE_LAYERS = ("attn1.to_k", "attn1.to_v")  # attn1 is self-attention, attn2 cross-attention to the prompt


class SharedAttention:
    """Hooks on the self-attention of the UNet's decoder, which carries appearance more than layout; any attention kernel works.

    Outside `record_endpoint` and `mix_endpoints` the network is unchanged. Add adapters to the UNet before creating it.
    """

    def __init__(self, unet: nn.Module):
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.endpoints: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self.record: int | None = None
        self.alpha: float | None = None
        layers = {n: m for n, m in unet.up_blocks.named_modules() if n.endswith(KEY_VALUE_LAYERS)}
        if not layers:
            raise ValueError("attention: the UNet's decoder has no self-attention; choose attention=0")
        unet.set_attn_processor(AttnProcessor2_0())  # which calls each layer; see `sdft.lora.attention`
        self.hooks = [layer.register_forward_hook(self.build_hook(name)) for name, layer in layers.items()]

    def build_hook(self, name: str):
        def record_or_mix(_module, _inputs, output: Tensor) -> Tensor | None:
            if self.record is not None:
                self.endpoints[self.record][name] = output
            if self.alpha is not None:
                return lerp(self.endpoints[0][name], self.endpoints[1][name], self.alpha)
            return None

        return record_or_mix

    @contextmanager
    def record_endpoint(self, index: int) -> Iterator[None]:
        """Record keys and values of forward passes as those of endpoint 0 or 1."""
        self.record = index
        try:
            yield
        finally:
            self.record = None

    @contextmanager
    def mix_endpoints(self, alpha: float) -> Iterator[None]:
        """Replace keys and values by (1 - alpha) times those of endpoint 0 plus alpha times those of endpoint 1."""
        self.alpha = alpha
        try:
            yield
        finally:
            self.alpha = None

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

"""Self-attention between two pictures: keys and values of both, recorded and mixed, in place of one's own (DiffMorpher, 2023)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from sdft.apps.morph.interpolation import lerp

KEY_VALUE_LAYERS = ("attn1.to_k", "attn1.to_v")  # attn1 attends to the picture itself, attn2 to its words


class SharedAttention:
    """Over the decoder of a UNet, whose self-attention carries looks more than layout; works with any attention kernel.

    Outside `recording` and `mixing` the network is as it was. Adapters have to be in it before this is made.
    """

    def __init__(self, unet: nn.Module):
        self.ends: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self.record: int | None = None
        self.share: float | None = None
        layers = {n: m for n, m in unet.up_blocks.named_modules() if n.endswith(KEY_VALUE_LAYERS)}
        if not layers:
            raise ValueError("attention: the UNet's decoder has no self-attention; choose attention=0")
        self.hooks = [layer.register_forward_hook(self.hook(name)) for name, layer in layers.items()]

    def hook(self, name: str):
        def act(_, given, output: Tensor) -> Tensor | None:
            if self.record is not None:
                self.ends[self.record][name] = output
            if self.share is not None:
                return lerp(self.ends[0][name], self.ends[1][name], self.share)
            return None

        return act

    @contextmanager
    def recording(self, end: int) -> Iterator[None]:
        """What the network computes now is what end 0 or 1 has to give."""
        self.record = end
        try:
            yield
        finally:
            self.record = None

    @contextmanager
    def mixing(self, share: float) -> Iterator[None]:
        """The network now attends to what both ends gave, (1 - share, share)."""
        self.share = share
        try:
            yield
        finally:
            self.share = None

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

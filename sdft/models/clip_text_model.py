"""Layers and hidden states of CLIP text encoders."""

from torch import Tensor, nn


def get_text_model(network: nn.Module) -> nn.Module:
    """The module with the layers of a CLIP text encoder, which some classes of transformers wrap."""
    return getattr(network, "text_model", network)


def encode_with_hidden_state(network: nn.Module, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """The last hidden state after the final norm, and that of a layer counted from the last one, both `[batch, tokens, width]`.

    With a hook, as transformers gives no hidden states of the classes that FSDP derives.
    """
    states = []
    hook = (
        get_text_model(network)
        .encoder.layers[-layer]
        .register_forward_hook(
            lambda module, inputs, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
    )
    try:
        return network(tokens).last_hidden_state, states[0]
    finally:
        hook.remove()

"""Names of the weights, layers and hidden states of CLIP text encoders."""

from torch import Tensor, nn

TEXT_MODEL_PREFIX = "text_model."  # of names in most files and in transformers 4, and of one of two classes in 5
TEXT_PROJECTION = "text_projection"  # the layer outside the text model


def add_text_model_prefix(name: str) -> str:
    """The name of a layer or weight of a text encoder in most files, whatever the version of transformers."""
    if name.startswith(TEXT_PROJECTION):
        return name
    return TEXT_MODEL_PREFIX + name.removeprefix(TEXT_MODEL_PREFIX)


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

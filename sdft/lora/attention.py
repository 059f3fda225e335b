"""Attention with plain LoRA in few operations.

peft computes W x + scale * (B (A x)) layer by layer, in five operations and seven of the backward pass. Here projections of one
input share the product with A (q, k and v of self-attention, k and v of cross-attention), sums and scales are part of a matrix
product, and nothing is divided by 1: on a GPU that waits for its host, the number of operations is the time of a step.
"""

import torch.nn.functional as F
from torch import Tensor, addmm, cat, is_grad_enabled, mm, nn
from torch.autograd import Function


class LowRankProjections(Function):
    """y = x Wᵀ + b + scale * x Aᵀ Bᵀ for each of several layers with one input; W and b are frozen.

    The backward pass can be differentiated again: with gradients enabled it recomputes what depends on A and x.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scales: tuple[float, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Outputs `[rows, out]` of `x` `[rows, in]`; `tensors` are all W, then all b (or None), all A and all B."""
        weights, biases, downs, ups = split_list(tensors, 4)
        down = join_rows(downs)
        hidden = mm(x, down.t())
        ctx.save_for_backward(x, down, hidden, *weights, *downs, *ups)
        ctx.scales = scales
        return tuple(
            F.linear(x, weight, bias).addmm_(part, up.t(), alpha=scale)
            for weight, bias, part, up, scale in zip(
                weights, biases, split_columns(hidden, downs), ups, scales, strict=True
            )
        )

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, down, hidden, *tensors = ctx.saved_tensors
        weights, downs, ups = split_list(tensors, 3)
        if is_grad_enabled():
            down = join_rows(downs)
            hidden = mm(x, down.t())
        hidden_gradients = [
            scaled_mm(gradient, up, scale) for gradient, up, scale in zip(gradients, ups, ctx.scales, strict=True)
        ]
        up_gradients = [
            scaled_mm(gradient.t(), part, scale)
            for gradient, part, scale in zip(gradients, split_columns(hidden, downs), ctx.scales, strict=True)
        ]
        hidden_gradient = hidden_gradients[0] if len(downs) == 1 else cat(hidden_gradients, 1)
        down_gradients = mm(hidden_gradient.t(), x).split([len(part) for part in downs])
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = mm(hidden_gradient, down)
            for gradient, weight in zip(gradients, weights, strict=True):
                x_gradient = x_gradient.addmm_(gradient, weight)
        return x_gradient, None, *[None] * 2 * len(weights), *down_gradients, *up_gradients


def split_list(values, count: int) -> list:
    """`count` lists of equal length."""
    size = len(values) // count
    return [list(values[start : start + size]) for start in range(0, len(values), size)]


def join_rows(downs: list[Tensor]) -> Tensor:
    return downs[0] if len(downs) == 1 else cat(downs)


def split_columns(hidden: Tensor, downs: list[Tensor]):
    return hidden.split([len(down) for down in downs], 1)


def scaled_mm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a b in one operation."""
    return mm(a, b) if scale == 1 else addmm(a.new_empty(()), a, b, beta=0, alpha=scale)


class LoraAttentionProcessor:
    """diffusers' attention of transformer blocks; `adapters` are the names of those that all projections have as plain LoRA.

    In any other state than one of them active, such as several, disabled or merged adapters, the layers compute themselves.
    """

    def __init__(self, adapters: set[str]):
        self.adapters = adapters

    def __call__(
        self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask=None
    ) -> Tensor:
        """`[batch, positions, width]` of `hidden_states` of that shape and the context `[batch, tokens, width]`."""
        if encoder_hidden_states is None:
            query, key, value = self.project(hidden_states, attn.to_q, attn.to_k, attn.to_v)
        else:
            (query,) = self.project(hidden_states, attn.to_q)
            key, value = self.project(encoder_hidden_states, attn.to_k, attn.to_v)
        query, key, value = (split_heads(tensor, attn.heads) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        (output,) = self.project(output.transpose(1, 2).flatten(2), attn.to_out[0])
        return output

    def project(self, x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
        """Outputs `[batch, positions, out]` of layers with one input `[batch, positions, in]`."""
        adapter, *others = layers[0].active_adapters
        if others or adapter not in self.adapters or not all(is_active(layer, adapter, x.dtype) for layer in layers):
            return tuple(layer(x) for layer in layers)
        bases = [layer.base_layer for layer in layers]
        tensors = [
            *[base.weight for base in bases],
            *[base.bias for base in bases],
            *[layer.lora_A[adapter].weight for layer in layers],
            *[layer.lora_B[adapter].weight for layer in layers],
        ]
        scales = tuple(layer.scaling[adapter] for layer in layers)
        outputs = LowRankProjections.apply(x.flatten(0, 1), scales, *tensors)
        return tuple(output.unflatten(0, x.shape[:2]) for output in outputs)


def is_active(layer: nn.Module, adapter: str, dtype) -> bool:
    """Whether the layer adds this adapter only, in the precision of its input."""
    return (
        layer.active_adapters == [adapter]
        and not (layer.disable_adapters or layer.merged)
        and dtype == layer.base_layer.weight.dtype == layer.lora_A[adapter].weight.dtype
    )


def split_heads(tensor: Tensor, heads: int) -> Tensor:
    """`[batch, positions, width]` as `[batch, heads, positions, width / heads]`."""
    return tensor.unflatten(2, (heads, -1)).transpose(1, 2)


def use_lora_attention(unet: nn.Module) -> None:
    """Set the processor where all projections have plain LoRA without dropout. Call it again after adding an adapter."""
    from diffusers.models.attention_processor import Attention

    modules = {f"{name}.processor": module for name, module in unet.named_modules() if isinstance(module, Attention)}
    adapters = {name: find_plain_adapters(module) for name, module in modules.items() if is_supported(module)}
    if processors := {name: LoraAttentionProcessor(names) for name, names in adapters.items() if names}:
        unet.set_attn_processor(unet.attn_processors | processors)


def is_supported(attn: nn.Module) -> bool:
    """Whether an attention is one of a transformer block, without a processor of others."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    has_other_operations = (
        attn.group_norm or attn.spatial_norm or attn.norm_q or attn.norm_cross or attn.residual_connection
    )
    return (
        type(attn.processor) in (AttnProcessor2_0, LoraAttentionProcessor)
        and not has_other_operations
        and attn.rescale_output_factor == 1
        and attn.to_k is not None
        and attn.to_out[1].p == 0
    )


def find_plain_adapters(attn: nn.Module) -> set[str]:
    """Names of the adapters that are plain LoRA without dropout on all projections."""
    from peft.tuners.lora import Linear

    layers = [attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]]
    if not all(isinstance(layer, Linear) and type(layer.base_layer) is nn.Linear for layer in layers):
        return set()
    return {name for name in layers[0].lora_A if all(is_plain(layer, name) for layer in layers)}


def is_plain(layer: nn.Module, adapter: str) -> bool:
    return (
        adapter in layer.lora_A
        and adapter not in layer.lora_variant
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
        and not layer.lora_bias[adapter]
    )

"""Names of UNet layers in the original layout (Rombach et al., 2022), which numbers down and up blocks in one list each."""

RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER_NAMES = {  # of layers outside the blocks; `add_embedding` takes the sizes and the pooled caption of SDXL
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def map_unet_layers(unet) -> list[tuple[str, str]]:
    """Pairs of (diffusers layer, original layer)."""
    config, names = unet.config, {name for name, _ in unet.named_modules()}
    pairs, number = [*OUTER_NAMES.items()], 1
    for block in range(len(config.down_block_types)):
        for layer in range(config.layers_per_block):
            pairs += map_resnet_layers(f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{number}.0")
            pairs.append((f"down_blocks.{block}.attentions.{layer}", f"input_blocks.{number}.1"))
            number += 1
        if f"down_blocks.{block}.downsamplers.0" in names:
            pairs.append((f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{number}.0.op"))
            number += 1
    pairs += map_resnet_layers("mid_block.resnets.0", "middle_block.0")
    pairs += map_resnet_layers("mid_block.resnets.1", "middle_block.2")
    pairs.append(("mid_block.attentions.0", "middle_block.1"))
    number = 0
    for block in range(len(config.up_block_types)):
        for layer in range(config.layers_per_block + 1):
            pairs += map_resnet_layers(f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{number}.0")
            pairs.append((f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{number}.1"))
            number += 1
        position = 2 if f"up_blocks.{block}.attentions" in names else 1  # last module of the block
        pairs.append((f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{number - 1}.{position}.conv"))
    return pairs


def map_resnet_layers(name: str, original: str) -> list[tuple[str, str]]:
    return [(f"{name}.{layer}", f"{original}.{original_layer}") for layer, original_layer in RESNET_NAMES.items()]


def to_original_name(layer: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """The original name of a layer, by the longest matching pair; unchanged if there is none."""
    matches = [pair for pair in pairs if f"{layer}.".startswith(f"{pair[0]}.")]
    name, original = max(matches, key=lambda pair: len(pair[0]), default=("", ""))
    return original + layer.removeprefix(name)

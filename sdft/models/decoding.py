"""Decode latents to images within a bounded memory: in slices of a batch, and large images in tiles."""

import torch
from torch import Tensor

MAX_SLICE_PIXELS = 512 * 512  # decoded at once, unless one image has more: 0.75 GiB
MAX_WHOLE_PIXELS = 1536 * 1536  # of an image that is decoded whole: 6.75 GiB


def decode_latents(vae, latents: Tensor, pixels_per_latent: int) -> Tensor:
    """Images `[batch, 3, h, w]` of unscaled latents `[batch, 4, h/f, w/f]`, where f² is `pixels_per_latent`.

    Slices change no image. Tiles overlap and are blended, as with `enable_tiling` of diffusers' pipelines.
    """
    pixels = latents.shape[2] * latents.shape[3] * pixels_per_latent
    if pixels > MAX_WHOLE_PIXELS:
        vae.enable_tiling()
    try:
        images = [vae.decode(part).sample for part in latents.split(max(1, MAX_SLICE_PIXELS // pixels))]
    finally:
        vae.disable_tiling()  # it would also encode in tiles
    return images[0] if len(images) == 1 else torch.cat(images)

"""Stateless random numbers: every draw is a function of (seed, purpose, index), never of a global state.

Noise is therefore independent of the number of workers, ranks and micro-batches, and a resumed run draws the same numbers
as an uninterrupted one.
"""

from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


class Draw:
    """What is drawn. These strings seed the draws: changing one changes the results of every run, as would a new data format."""

    IMAGE_ORDER = "order"  # permutation of the images of an epoch, or of one of its buckets
    STEP_ORDER = "runs"  # permutation of the steps of an epoch with several buckets
    CROP = "crop"  # position of a random crop
    FLIP = "flip"  # whether the image is flipped
    DROPOUT = "dropout"  # of a sample: whether its caption is dropped; of a step and rank: masks of dropout layers
    CAPTION = "caption"  # one of the image's captions
    TAGS = "tags"  # permutation of the tags of a caption
    POSTERIOR = "posterior"  # latents within their distribution
    NOISE = "noise"
    PERTURBATION = "perturbation"  # of the noise in the input
    OFFSET = "offset"  # of the noise, constant over an image
    DIRECTION = "direction"  # of the change of latents in the Smooth Diffusion loss
    GUIDANCE = "guidance"  # guidance scale of a distilled sample
    TIMESTEP = "timestep"
    FIXED = "fixed"  # instead of a sample number: the same draws at every validation
    ROUNDING = "rounding"  # of bf16 weights and optimizer states
    DIGIT_STYLE = "look"  # colors and style of an embedded digit
    DIGIT_SIZE = "digit size"  # of the paper around an embedded digit

    TRAINING_IMAGES = ""  # prefixes of the strings above, by dataset
    CLASS_IMAGES = "class "
    HELD_OUT_IMAGES = "held out "


def make_generator(seed: int, *key) -> Generator:
    """CPU generator seeded by (seed, key): equal keys draw equal numbers on every machine."""
    digest = blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_pyramid_noise(shape: tuple[int, int, int], discount: float, generator: Generator) -> Tensor:
    """Multi-scale noise `[channels, h, w]` of unit variance: layer i is 2^i times coarser and `discount`^i as strong.

    Lets large regions differ in brightness (Whitaker, 2023). `discount=0` is standard normal noise.
    """
    noise = torch.randn(shape, generator=generator)
    channels, height, width = shape
    strength, side = discount, min(height, width) // 2
    while strength > 0 and side >= 1:
        coarse = torch.randn(1, channels, side, max(1, side * width // height), generator=generator)
        noise += strength * F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)[0]
        strength, side = strength * discount, side // 2
    return noise / noise.std() if discount else noise


def draw_permutation(seed: int, epoch: int, count: int) -> Tensor:
    """Order of `count` images in one epoch: a permutation `[count]`."""
    return torch.randperm(count, generator=make_generator(seed, Draw.IMAGE_ORDER, epoch))

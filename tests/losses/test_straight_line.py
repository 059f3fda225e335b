"""Loss and gradients of a training step, from files to the backward pass, beside a straight-line computation with diffusers."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image, ImageOps
from torch.utils.data import default_collate

from sdft.data.image_folder import ImageFolder
from sdft.data.latent_cache import fill_caches
from sdft.data.training_dataset import DataSettings
from sdft.losses.diffusion import DiffusionLoss
from sdft.models.loading import load_stable_diffusion
from sdft.rng import make_generator

SIZES = {
    "a": (48, 32),
    "b": (40, 90),
    "c": (70, 30),
}  # of the files; resolution 32, so that all are resized and cropped
BUCKETS = {"a": (40, 24), "b": (16, 48), "c": (48, 16)}
SAMPLES = range(6)
SEED = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images of different shapes, each with a caption."""
    home = tmp_path_factory.mktemp("shapes")
    for number, (name, (width, height)) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(home / f"{name}.png")
        (home / f"{name}.txt").write_text(f"a photo of {name}")
    return home


def load_model(family: str, small_model_folder):
    torch.manual_seed(0)
    name = "tiny-sd" if family == "sd15" else str(small_model_folder(family))
    return load_stable_diffusion(name, weights="random")


def draw_flags(number: int) -> tuple[bool, bool]:
    """Whether the image of a sample is flipped, and whether its caption is dropped."""
    draws = [float(torch.rand(1, generator=make_generator(SEED, purpose, number))) for purpose in ("flip", "dropout")]
    return draws[0] < 0.5, draws[1] < 0.3


def read_pixels(file, bucket: tuple[int, int], is_flipped: bool):
    """`[1, 3, h, w]` of the image resized to cover its bucket and cropped at its centre, and the geometry of the crop."""
    image = Image.open(file).convert("RGB")
    scale = max(bucket[0] / image.width, bucket[1] / image.height)
    resized = image.resize(
        (max(bucket[0], round(image.width * scale)), max(bucket[1], round(image.height * scale))),
        Image.Resampling.LANCZOS,
        reducing_gap=3.0,
    )
    left, top = int(0.5 * (resized.width - bucket[0] + 1 - 1e-9)), int(0.5 * (resized.height - bucket[1] + 1 - 1e-9))
    crop = resized.crop((left, top, left + bucket[0], top + bucket[1]))
    if is_flipped:
        crop, left = ImageOps.mirror(crop), resized.width - left - bucket[0]
    pixels = torch.from_numpy(np.asarray(crop, dtype=np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
    return pixels, [image.height, image.width, top, left, bucket[1], bucket[0]]


def compute_straight(model, family: str, folder, number: int, name: str, draws: dict) -> torch.Tensor:
    """The Min-SNR loss of sample `number`, which is image `name`."""
    pipeline, vae = model.build_pipeline(), model.vae
    is_flipped, is_dropped = draw_flags(number)
    caption = "" if is_dropped else f"a photo of {name}"
    pixels, geometry = read_pixels(folder / f"{name}.png", BUCKETS[name], is_flipped)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        latents = (posterior.mean + posterior.std * draws["posterior"]) * vae.config.scaling_factor
        context, negative, *pooled = pipeline.encode_prompt(
            prompt=caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    if family == "sdxl":
        if is_dropped:  # zeros, as this base's pipeline gives for no negative prompt
            context, pooled = negative, [pooled[1]]
        conditions = {"text_embeds": pooled[0], "time_ids": torch.tensor([geometry], dtype=torch.float32)}
    scheduler = DDPMScheduler.from_config(model.scheduler.config)
    timestep = (draws["timestep_draw"] * 1000).long()
    noisy = scheduler.add_noise(latents, draws["noise"], timestep)
    extra = {"added_cond_kwargs": conditions} if family == "sdxl" else {}
    output = model.unet(noisy, timestep, context, **extra).sample
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, draws["noise"], timestep) if is_velocity else draws["noise"]
    alpha = scheduler.alphas_cumprod[timestep]
    snr = alpha / (1 - alpha)
    weight = snr.clamp(max=5.0) / (snr + 1 if is_velocity else snr)
    return (output - target).square().mean() * weight[0]


@pytest.mark.parametrize("cache", ["off", "ram"])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_loss_and_gradients_equal_a_straight_line_computation(family, cache, folder, small_model_folder):
    model = load_model(family, small_model_folder)
    settings = DataSettings(32, seed=SEED, flip=True, dropout=0.3, cache=cache, max_upscale=0)
    dataset = settings.build_dataset(ImageFolder(str(folder)), model)
    names = sorted(SIZES)
    assert all(len(set(flags)) == 2 for flags in zip(*map(draw_flags, SAMPLES), strict=True))
    assert [dataset.sizes[names.index(name)] for name in names] == list(BUCKETS.values())
    if cache == "ram":
        fill_caches([dataset], model, text=True)
    model.unet.requires_grad_(True)
    parameters = list(model.unet.parameters())
    for number in SAMPLES:
        batch = default_collate([dataset[number]])
        moments = (batch["mean"], batch["std"]) if cache == "ram" else model.moments(batch["pixels"])
        draws = batch | {"timestep": (batch["timestep_draw"] * 1000).long()}
        latents = model.latents(*moments, batch["posterior"])
        (loss,) = DiffusionLoss()(model, latents, model.condition(batch), draws)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        name = names[dataset.plan.image_index(number)]
        expected = compute_straight(model, family, folder, number, name, batch)
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
        expected_gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            assert (gradient is None) == (other is None)
            if gradient is not None:
                torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-5)

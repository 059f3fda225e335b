"""A dataset of one image, and its training samples with cached latents and text outputs."""

from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.models.diffusion_model import DiffusionModel


class SingleImageDataset(ImageDataset):
    """Dataset of one image."""

    def __init__(self, sample: CaptionedImage):
        self.sample = sample

    def __len__(self):
        return 1

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.sample

    def sizes(self) -> list[tuple[int, int]]:
        return [self.sample.image.size]

    def captions(self) -> list[str]:
        return [self.sample.caption]

    def describe(self) -> str:
        return self.sample.name


def build_samples(model: DiffusionModel, image: CaptionedImage, seed: int):
    """Training samples of the image, with cached latents and text outputs."""
    from sdft.data.latent_cache import (
        build_latent_encoder,
        build_text_encoder,
        compute_missing,
        list_required_captions,
        list_required_latents,
    )
    from sdft.data.tensor_cache import TensorCache
    from sdft.data.training_dataset import DataSettings

    samples = DataSettings(max(image.image.size), seed=seed, max_upscale=0).build_dataset(
        SingleImageDataset(image), model
    )
    samples.sizes = [image.image.size]
    caches = TensorCache(None), TensorCache(None)
    compute_missing(caches[0], list_required_latents([samples]), build_latent_encoder(model), "latents")
    compute_missing(caches[1], list_required_captions([samples]), build_text_encoder(model), "captions")
    samples.latents, samples.texts = caches
    return samples

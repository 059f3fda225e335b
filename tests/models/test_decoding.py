"""Images are decoded in slices and tiles, which bound the memory and change no small image."""

import pytest
import torch

from sdft.models import decoding


@pytest.fixture
def decoded_shapes(tiny, monkeypatch):
    """A model, and the shapes of the latents that its decoder was given."""
    model, shapes = tiny(), []
    forward = model.vae.decoder.forward
    monkeypatch.setattr(model.vae.decoder, "forward", lambda x: shapes.append(tuple(x.shape)) or forward(x))
    return model, shapes


def test_a_batch_of_small_images_is_decoded_at_once(decoded_shapes):
    model, shapes = decoded_shapes
    latents = torch.randn(3, 4, 4, 4)
    images = model.decode(latents)
    assert shapes == [(3, 4, 4, 4)]
    assert torch.equal(images, model.vae.decode(latents / model.vae.config.scaling_factor).sample)


def test_large_images_are_decoded_in_slices(decoded_shapes, monkeypatch):
    model, shapes = decoded_shapes
    latents = torch.randn(5, 4, 4, 4)
    images = model.decode(latents)
    pixels = images.shape[2] * images.shape[3]
    monkeypatch.setattr(decoding, "MAX_SLICE_PIXELS", 2 * pixels)
    torch.testing.assert_close(model.decode(latents), images)
    monkeypatch.setattr(decoding, "MAX_SLICE_PIXELS", pixels - 1)
    torch.testing.assert_close(model.decode(latents), images)
    assert [shape[0] for shape in shapes] == [5, 2, 2, 1, *[1] * 5]


def test_only_very_large_images_are_decoded_in_tiles_and_none_is_encoded_so(decoded_shapes, monkeypatch):
    model, shapes = decoded_shapes
    side = model.vae.tile_latent_min_size
    latents = torch.randn(1, 4, 2 * side, side)
    images = model.decode(latents)
    monkeypatch.setattr(decoding, "MAX_WHOLE_PIXELS", images[0, 0].numel() - 1)
    tiled = model.decode(latents)
    assert shapes[0] == tuple(latents.shape) and all(shape[2] <= side for shape in shapes[1:]) and len(shapes) > 2
    assert tiled.shape == images.shape and not model.vae.use_tiling

"""DINO: class token features of images with their aspect ratio kept."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from sdft.evaluation.metrics.dino import DinoFeatureExtractor, preprocess_image
from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small ViT with random weights, saved by transformers."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32)
    path = tmp_path_factory.mktemp("dino")
    ViTModel(config, add_pooling_layer=False).save_pretrained(path)
    return str(path)


def test_features_are_unit_class_tokens(folder, photographs):
    image = Image.open(photographs / "cat.jpg")
    scorer = DinoFeatureExtractor(folder)
    with torch.no_grad():
        token = (
            ViTModel.from_pretrained(folder)
            .eval()(pixel_values=preprocess_image(image, 32)[None])
            .last_hidden_state[0, 0]
            .numpy()
        )
    assert np.allclose(scorer.embed_images([image])[0].numpy(), token / np.linalg.norm(token), atol=1e-5)


def test_images_are_centre_cropped_without_distortion():  # pitfall 27
    wide = Image.new("RGB", (120, 40), "red")
    wide.paste(Image.new("RGB", (40, 40), "blue"), (40, 0))
    red, _, blue = preprocess_image(wide, 32)[:, 16, 2:30].mean(1)
    assert preprocess_image(wide, 32).shape == (3, 32, 32)
    assert blue > 2 and red < -2


def test_missing_model_is_reported():
    with pytest.raises(ScorerUnavailableError, match=r"metrics.dino=some/thing: .*hf download facebook/dino-vits16"):
        DinoFeatureExtractor("some/thing")

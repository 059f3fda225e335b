"""DINO: the class token of a vision transformer, of pictures that keep their shape."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from sdft.evaluation.metrics.dino import DinoFeatureExtractor, preprocess_image
from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small one with random weights, as transformers saves it."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(place := tmp_path_factory.mktemp("dino"))
    return str(place)


def test_features_are_unit_class_tokens(folder, photographs):
    picture = Image.open(photographs / "cat.jpg")
    scorer = DinoFeatureExtractor(folder)
    with torch.no_grad():
        token = (
            ViTModel.from_pretrained(folder)
            .eval()(pixel_values=preprocess_image(picture, 32)[None])
            .last_hidden_state[0, 0]
            .numpy()
        )
    assert np.allclose(scorer.embed_images([picture])[0].numpy(), token / np.linalg.norm(token), atol=1e-5)


def test_pictures_are_cut_to_their_middle_never_squashed():  # pitfall 27
    wide = Image.new("RGB", (120, 40), "red")
    wide.paste(Image.new("RGB", (40, 40), "blue"), (40, 0))
    red, _, blue = preprocess_image(wide, 32)[:, 16, 2:30].mean(1)
    assert preprocess_image(wide, 32).shape == (3, 32, 32)
    assert blue > 2 and red < -2


def test_a_missing_one_says_what_to_fetch():
    with pytest.raises(ScorerUnavailableError, match=r"metrics.dino=some/thing: .* `hf download facebook/dino-vits16`"):
        DinoFeatureExtractor("some/thing")

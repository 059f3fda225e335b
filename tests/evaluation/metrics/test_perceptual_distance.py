"""Perceptual distances: the formula over CLIP layers, and LPIPS."""

import numpy as np
import pytest
import torch
from torchvision import models

from sdft.data.digits import Digits
from sdft.data.inked_digits import InkedDigits
from sdft.evaluation.metrics.clip import ClipFeatureExtractor
from sdft.evaluation.metrics.feature_extractor import ScorerUnavailableError
from sdft.evaluation.metrics.perceptual_distance import ClipPerceptualDistance, Lpips


@pytest.fixture(scope="module")
def layers():
    return ClipPerceptualDistance(ClipFeatureExtractor("tiny-clip", batch_size=3))


def test_distances_are_mean_squares_of_unit_activations(layers):
    images = [Digits()[i].image for i in (0, 12, 31)]
    clip = layers.clip
    with torch.no_grad():
        stack = torch.stack([clip.transform(p) for p in images])
        maps = clip.model.visual.forward_intermediates(stack, indices=4, intermediates_only=True)["image_intermediates"]
    assert len(maps) == 4
    unit = [m.double().numpy() / np.linalg.norm(m.double().numpy(), axis=1, keepdims=True) for m in maps]
    expected = np.mean([((m[0] - m[2]) ** 2).sum(0).mean() for m in unit])
    assert layers.compute_distances([images[0]], [images[2]]).item() == pytest.approx(expected, abs=1e-5)
    table = layers.compute_pairwise(images)
    assert table[0, 2].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(table, table.T) and not table.diagonal().any()


def test_distance_is_larger_between_styles_than_within_one(layers):
    neon, inks = ([source[i].image for i in range(8)] for source in (Digits(), InkedDigits()))
    assert layers.compute_distances(neon, inks).mean() > 2 * layers.compute_pairwise(neon).mean()


def test_missing_weights_are_reported_with_file_and_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    with pytest.raises(
        ScorerUnavailableError, match=r"metrics.perceptual=alex: .*alexnet-owt-7be5be79.pth.*/checkpoints/"
    ):
        Lpips("alex")
    with pytest.raises(ValueError, match="metrics.perceptual=resnet: .*alex, vgg, squeeze, or clip"):
        Lpips("resnet")


def test_offline_no_weights_are_requested_from_the_network(monkeypatch, tmp_path):
    import open_clip

    from sdft.evaluation.metrics.clip import ClipFeatureExtractor

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for net in ("alex", "vgg", "squeeze"):
        with pytest.raises(ScorerUnavailableError, match=rf"metrics.perceptual={net}: .*HF_HUB_OFFLINE=1"):
            Lpips(net)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"url": "https://host/weights.pt"})
    with pytest.raises(ScorerUnavailableError, match="metrics.clip=ViT-B-32: .*weights.pt.*HF_HUB_OFFLINE=1"):
        ClipFeatureExtractor("ViT-B-32", "openai")


def test_lpips_equals_torchmetrics_pair_by_pair(monkeypatch, tmp_path, photographs):
    """With random weights of the real architecture."""
    from PIL import Image
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as reference

    torch.manual_seed(0)
    weights = models.alexnet(weights=None).state_dict()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *_, **__: weights)
    images = [Image.open(photographs / f"{name}.jpg").resize((64, 64)) for name in ("cat", "coffee", "rocket")]
    lpips = Lpips("alex", batch_size=2)
    table = lpips.compute_pairwise(images)
    pixels = [torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1)[None] / 255 for p in images]
    with torch.no_grad():
        expected = reference(pixels[0], pixels[2], net_type="alex", normalize=True)
    assert table[0, 2].item() == pytest.approx(expected.item(), abs=1e-5) and table[0, 2] > 0
    assert torch.equal(table, table.T) and lpips.compute_distances(images[:1], images[:1]).item() == pytest.approx(
        0, abs=1e-6
    )
    assert lpips.compute_pairwise(images[:1]).tolist() == [[0.0]]
    mixed_sizes = [images[0], images[1].resize((96, 70))]
    assert lpips.compute_pairwise(mixed_sizes)[0, 1] > 0


def test_clip_without_a_transformer_is_rejected():
    class Convolutional:
        name = "RN50"
        model = type("Model", (), {"visual": object()})()

    with pytest.raises(ValueError, match="metrics.perceptual=clip: RN50 "):
        ClipPerceptualDistance(Convolutional())

"""Class images are generated once, and only files listed in the manifest are reused."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from sdft.data.digits import Digits
from sdft.data.prior_preservation import PriorPreservation, PriorPreservationDataset
from sdft.data.training_dataset import DataSettings
from sdft.models.image_cache import MANIFEST_FILE
from sdft.models.sampling import Sampling

SAMPLING = Sampling(steps=1, guidance_scale=1.0, batch_size=2)


@pytest.fixture
def load(tiny, tmp_path, monkeypatch):
    """A function that loads class images and returns (source, seeds of the images that were generated)."""
    monkeypatch.chdir(tmp_path)

    def load_and_record(model=None, sampling=SAMPLING, **options):
        seeds, sample_images = [], Sampling.sample_images
        monkeypatch.setattr(
            Sampling, "sample_images", lambda s, m, r, px: seeds.extend(n for _, n in r) or sample_images(s, m, r, px)
        )
        prior = PriorPreservation(**{"prompt": "a three", "images": 5} | options)
        source = prior.load_class_images(model or tiny(), sampling, 32)
        monkeypatch.setattr(Sampling, "sample_images", sample_images)
        return source, seeds

    return load_and_record


def test_only_missing_or_changed_images_are_generated(load):  # pitfall 26
    source, seeds = load()
    assert seeds == [0, 1, 2, 3, 4] and len(source) == 5 and set(source.captions()) == {"a three"}
    folder = next(iter(source.source.files)).parent
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert manifest["prompt"] == "a three" and len(manifest["files"]) == 5
    assert load()[1] == []
    before = (folder / "00003.png").read_bytes()
    Image.new("RGB", (32, 32)).save(folder / "00003.png")  # differs from the manifest
    (folder / "00001.png").unlink()
    assert load(images=6)[1] == [1, 3, 5]
    assert (folder / "00003.png").read_bytes() == before
    assert len(load(images=2)[0]) == 2


def test_other_prompt_model_or_sampling_does_not_reuse_images(load, tiny):
    load()
    assert len(load(prompt="a four")[1]) == 5
    assert len(load(model=tiny(seed=1))[1]) == 5
    assert len(load(sampling=Sampling(steps=2, batch_size=2))[1]) == 5
    assert len(load(sampling=replace(SAMPLING, scheduler="ddim"))[1]) == 5
    assert len(load(sampling=replace(SAMPLING, negative_prompt="blue"))[1]) == 5
    assert len(load(seed=9)[1]) == 5


def test_images_do_not_depend_on_the_batch_size(load):
    one = [load()[0][i].image.tobytes() for i in range(3)]
    load()[0].source.files[0].unlink()
    two = [load(sampling=Sampling(steps=1, guidance_scale=1.0, batch_size=5))[0][i].image.tobytes() for i in range(3)]
    for a, b in zip(one, two, strict=True):
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1


def test_folder_of_other_settings_is_refused(load, tmp_path):
    load(path=str(tmp_path / "class"))
    with pytest.raises(ValueError, match=r"class_path=.*prompt=a three, .*prompt=a four"):
        load(path=str(tmp_path / "class"), prompt="a four")


def test_images_missing_from_the_manifest_are_refused_or_used(load, tmp_path):
    folder = tmp_path / "class"
    load(path=str(folder))
    Image.new("RGB", (40, 40)).save(folder / "me.jpg")
    with pytest.raises(ValueError, match=r"class_path=.*\(me.jpg\); .*num_class_images=0"):
        PriorPreservation("a three", path=str(folder))
    source, seeds = load(path=str(folder), images=0)
    assert len(source) == 6 and not seeds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, "prior_loss_weight=-1"),
        ({"images": -1}, "num_class_images=-1"),
        ({"images": 0}, "num_class_images=0: .*class_path="),
        ({"images": 0, "path": "nowhere"}, "class_path=nowhere: "),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PriorPreservation("a dog", **options)


def test_subject_half_equals_training_without_a_prior_and_draws_differ(tiny):
    settings, model = DataSettings(resolution=32), tiny()
    subject = settings.build_dataset(Digits(digits=[3], per_digit=5), model)
    prior = settings.build_dataset(Digits(digits=[4], per_digit=7), model, "class ")
    pairs = PriorPreservationDataset(subject, prior, 0.5)
    assert len(pairs) == 5
    batch = pairs.collate([pairs[8], pairs[9]])
    unpaired = subject.collate([subject[8], subject[9]])
    for key, value in unpaired.items():
        assert torch.equal(batch[key][::2], value * (2 if key == "weight" else 1)), key
    assert batch["weight"].tolist() == [2, 1, 2, 1]
    assert not torch.equal(batch["noise"][0], batch["noise"][1])
    losses = torch.tensor([1.0, 10.0, 3.0, 20.0])  # mean(subject) + weight * mean(class); pitfall 9
    assert (losses * batch["weight"]).mean() == 2 + 0.5 * 15
    assert pairs.collate([pairs.load_fixed_sample(0, 0.5)])["pixels"].shape == (1, 3, 32, 32)

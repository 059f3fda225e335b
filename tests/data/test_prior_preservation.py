"""Class images are made once, and only those that the manifest vouches for count."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from sdft.data.digits import Digits
from sdft.data.prior_preservation import PriorPreservation, PriorPreservationDataset
from sdft.data.training_samples import DataSettings
from sdft.models.image_cache import MANIFEST_FILE
from sdft.models.sampling import Sampling

SAMPLING = Sampling(steps=1, guidance_scale=1.0, batch_size=2)


@pytest.fixture
def made(tiny, tmp_path, monkeypatch):
    """A function that asks for class images and returns (source, the seeds that had to be sampled)."""
    monkeypatch.chdir(tmp_path)

    def ask(model=None, sampling=SAMPLING, **options):
        asked, whole = [], Sampling.sample_images
        monkeypatch.setattr(
            Sampling, "sample_images", lambda s, m, r, px: asked.extend(n for _, n in r) or whole(s, m, r, px)
        )
        source = PriorPreservation(**{"prompt": "a three", "images": 5} | options).source(model or tiny(), sampling, 32)
        monkeypatch.setattr(Sampling, "sample_images", whole)
        return source, asked

    return ask


def test_missing_pictures_are_made_and_the_others_kept(made):  # pitfall 26
    source, asked = made()
    assert asked == [0, 1, 2, 3, 4] and len(source) == 5 and set(source.captions()) == {"a three"}
    folder = next(iter(source.source.files)).parent
    told = json.loads((folder / MANIFEST_FILE).read_text())
    assert told["prompt"] == "a three" and len(told["files"]) == 5
    assert made()[1] == []
    before = (folder / "00003.png").read_bytes()
    Image.new("RGB", (32, 32)).save(folder / "00003.png")  # not what was made
    (folder / "00001.png").unlink()
    assert made(images=6)[1] == [1, 3, 5]
    assert (folder / "00003.png").read_bytes() == before
    assert len(made(images=2)[0]) == 2


def test_another_prompt_model_or_sampling_never_reuses_them(made, tiny):
    made()
    assert len(made(prompt="a four")[1]) == 5
    assert len(made(model=tiny(seed=1))[1]) == 5
    assert len(made(sampling=Sampling(steps=2, batch_size=2))[1]) == 5
    assert len(made(sampling=replace(SAMPLING, scheduler="ddim"))[1]) == 5
    assert len(made(sampling=replace(SAMPLING, negative_prompt="blue"))[1]) == 5
    assert len(made(seed=9)[1]) == 5


def test_the_batch_size_does_not_matter(made):
    one = [made()[0][i].image.tobytes() for i in range(3)]
    made()[0].source.files[0].unlink()
    two = [made(sampling=Sampling(steps=1, guidance_scale=1.0, batch_size=5))[0][i].image.tobytes() for i in range(3)]
    for a, b in zip(one, two, strict=True):
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1


def test_a_folder_made_otherwise_is_refused(made, tmp_path):
    made(path=str(tmp_path / "class"))
    with pytest.raises(ValueError, match=r"made with prompt=a three, and this run wants prompt=a four; give another"):
        made(path=str(tmp_path / "class"), prompt="a four")


def test_stray_pictures_are_refused_or_taken_as_they_are(made, tmp_path):
    folder = tmp_path / "class"
    made(path=str(folder))
    Image.new("RGB", (40, 40)).save(folder / "me.jpg")
    with pytest.raises(
        ValueError, match=r"class_path=.*does not name \(me.jpg\); move them out, or give num_class_images=0"
    ):
        PriorPreservation("a three", path=str(folder))
    source, asked = made(path=str(folder), images=0)
    assert len(source) == 6 and not asked


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weight": -1}, "prior_loss_weight=-1"),
        ({"images": -1}, "num_class_images=-1"),
        ({"images": 0}, "num_class_images=0: give class_path=FOLDER"),
        ({"images": 0, "path": "nowhere"}, "class_path=nowhere: no such folder"),
    ],
)
def test_bad_words_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        PriorPreservation("a dog", **options)


def test_pairs_have_the_subjects_own_draws_and_others_for_the_class(tiny):
    stream, model = DataSettings(resolution=32), tiny()
    subject = stream.samples(Digits(digits=[3], per_digit=5), model)
    prior = stream.samples(Digits(digits=[4], per_digit=7), model, "class ")
    pairs = PriorPreservationDataset(subject, prior, 0.5)
    assert len(pairs) == 5
    batch = pairs.collate([pairs[8], pairs[9]])
    alone = subject.collate([subject[8], subject[9]])
    for key, value in alone.items():
        assert torch.equal(batch[key][::2], value * (2 if key == "weight" else 1)), key
    assert batch["weight"].tolist() == [2, 1, 2, 1]
    assert not torch.equal(batch["noise"][0], batch["noise"][1])
    losses = torch.tensor([1.0, 10.0, 3.0, 20.0])  # mean(subject) + weight * mean(class); pitfall 9
    assert (losses * batch["weight"]).mean() == 2 + 0.5 * 15
    assert pairs.collate([pairs.load_fixed_sample(0, 0.5)])["pixels"].shape == (1, 3, 32, 32)

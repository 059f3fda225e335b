"""What sample n is depends on (seed, n) alone."""

import pytest
import torch

from sdft.data.digits import Digits
from sdft.data.training_samples import DataSettings


@pytest.fixture
def samples(tiny):
    def build(**options):
        return DataSettings(resolution=32, **options).samples(Digits(per_digit=2), tiny())

    return build


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_sample_is_a_function_of_its_number(samples):
    first, again = samples(crop="random", flip=True, dropout=0.5), samples(crop="random", flip=True, dropout=0.5)
    for number in (13, 2, 40):
        torch.manual_seed(number)
        assert same(first[number], again[number])
    assert not torch.equal(first[3]["noise"], first[4]["noise"])
    assert not torch.equal(first[3]["noise"], samples(seed=1)[3]["noise"])


def test_every_image_comes_once_an_epoch_in_another_order(samples):
    stream = samples()
    epochs = [[int(stream[n]["index"]) for n in range(start, start + 10)] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_image_meets_new_noise_every_epoch(samples):
    stream = samples()
    noise = {int(s["index"]): s["noise"] for s in (stream[n] for n in range(10))}
    assert not any(torch.equal(noise[int(s["index"])], s["noise"]) for s in (stream[n] for n in range(10, 20)))


def test_draws_have_their_distributions(samples):
    stream = samples(dropout=0.3)
    drawn = [stream[n] for n in range(600)]
    timesteps = torch.stack([s["timestep"] for s in drawn]).float()
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    assert timesteps.mean() == pytest.approx(499.5, abs=40)
    assert torch.stack([s["noise"] for s in drawn]).std() == pytest.approx(1, abs=0.02)
    dropped = sum(torch.equal(s["ids"], stream.empty_ids) for s in drawn) / 600
    assert dropped == pytest.approx(0.3, abs=0.06)


def test_timesteps_keep_to_their_range_and_distribution(samples):
    quarter, favoured = samples(timestep_range=[0.0, 0.25]), samples(timestep_distribution="logit_normal")
    low = [int(quarter.timestep(n)) for n in range(400)]
    assert min(low) >= 0 and 200 < max(low) < 250
    middle = torch.tensor([int(favoured.timestep(n)) for n in range(400)]) / 1000
    assert (middle - 0.5).abs().mean() < 0.21 < 0.25  # uniform: 0.25
    for options in ({"timestep_range": [0.5, 0.5]}, {"timestep_distribution": "cubic"}, {"pyramid_noise": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            samples(**options)


def test_pyramid_noise_is_coarse_and_of_unit_variance(samples):
    built = (samples(pyramid_noise=discount) for discount in (0.0, 0.6))
    plain, pyramid = (torch.stack([one[n]["noise"] for n in range(60)]) for one in built)
    assert pyramid.std().item() == pytest.approx(1, abs=0.01)
    means = [noise.mean((2, 3)).std().item() for noise in (plain, pyramid)]
    assert means[1] > 2 * means[0]


def test_bad_words_are_refused():
    with pytest.raises(ValueError, match="crop=left: choose one of buckets, center, random"):
        DataSettings(32, crop="left")
    with pytest.raises(ValueError, match="caption_dropout=2"):
        DataSettings(32, dropout=2)
    for options in ({"cache": "tape"}, {"max_upscale": 0.5}, {"keep_tags": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            DataSettings(32, **options)


def test_one_of_several_captions_is_drawn_and_the_first_stands_for_all_elsewhere(tiny):  # S3-14
    class Told(Digits):
        def all_captions(self):
            return [[caption, "something else", "a third"] for caption in self.captions()]

    model = tiny()
    samples = DataSettings(32).samples(Told(per_digit=2), model)
    texts = [["", "something else", "a third"][k] for k in (1, 2)]
    drawn = [samples[n]["ids"] for n in range(60)]
    counts = [sum(torch.equal(ids, model.tokenize([text])[0]) for ids in drawn) for text in texts]
    assert all(10 <= count <= 30 for count in counts)
    assert torch.equal(samples.load_fixed_sample(0, 0.5)["ids"], model.tokenize([samples.source.captions()[0]])[0])


def test_tags_are_shuffled_behind_those_that_stay(tiny):
    class Tagged(Digits):
        def captions(self):
            return ["red, one, two, three, four"] * len(self)

    model = tiny()
    samples = DataSettings(32, shuffle_tags=True, keep_tags=1).samples(Tagged(per_digit=2), model)
    seen = {tuple(samples[n]["ids"].tolist()) for n in range(12)}
    words = [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in seen]
    assert len(seen) > 6 and all(text.startswith("red") for text in words)
    assert len({"".join(sorted(text.replace(" ", ""))) for text in words}) == 1


def test_several_resolutions_show_each_picture_at_each(samples):
    several = samples(extra_resolutions=[16, 48])
    seen = [(int(s["index"]) % 10, tuple(s["pixels"].shape[1:])) for s in (several[n] for n in range(30))]
    assert sorted(seen) == sorted((i, (side, side)) for i in range(10) for side in (16, 32, 48))
    with pytest.raises(ValueError, match="resolution=20"):
        samples(extra_resolutions=[20])

"""Sample n depends on (seed, n) only."""

import pytest
import torch

from sdft.data.digits import Digits
from sdft.data.training_dataset import DataSettings


@pytest.fixture
def samples(tiny):
    def build(**options):
        return DataSettings(resolution=32, **options).build_dataset(Digits(per_digit=2), tiny())

    return build


def is_same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_sample_is_a_function_of_its_number(samples):
    first, again = samples(crop="random", flip=True, dropout=0.5), samples(crop="random", flip=True, dropout=0.5)
    for number in (13, 2, 40):
        torch.manual_seed(number)
        assert is_same(first[number], again[number])
    assert not torch.equal(first[3]["noise"], first[4]["noise"])
    assert not torch.equal(first[3]["noise"], samples(seed=1)[3]["noise"])


def test_every_image_occurs_once_per_epoch_in_a_new_order(samples):
    dataset = samples()
    epochs = [[dataset.plan.image_index(n) for n in range(start, start + 10)] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_image_has_new_noise_in_every_epoch(samples):
    dataset = samples()
    noise = {dataset.plan.image_index(n): dataset[n]["noise"] for n in range(10)}
    assert not any(torch.equal(noise[dataset.plan.image_index(n)], dataset[n]["noise"]) for n in range(10, 20))


def test_a_sample_has_the_required_draws_and_no_others(samples):
    plain, reduced = samples(dropout=0.3), samples(dropout=0.3)
    reduced.required_draws = {"noise", "offset"}
    for number in range(3):
        full, sample = plain[number], reduced[number]
        assert full.keys() - sample.keys() == {"perturbation", "direction", "guidance"}
        assert all(torch.equal(full[name], tensor) for name, tensor in sample.items())


def test_weights_of_one_are_left_out(samples):
    dataset = samples()
    assert "sample_weight" not in dataset[(0, 1.0)] and dataset[(0, 0.5)]["sample_weight"] == 0.5


def test_draws_have_their_distributions(samples):
    dataset = samples(dropout=0.3)
    drawn = [dataset[n] for n in range(600)]
    timestep_draws = torch.stack([s["timestep_draw"] for s in drawn])
    assert timestep_draws.min() >= 0 and timestep_draws.max() < 1
    assert timestep_draws.mean() == pytest.approx(0.5, abs=0.04)
    assert torch.stack([s["noise"] for s in drawn]).std() == pytest.approx(1, abs=0.02)
    dropped = sum(torch.equal(s["ids"], dataset.tokenizer.encode("")) for s in drawn) / 600
    assert dropped == pytest.approx(0.3, abs=0.06)


def test_invalid_settings_are_refused(samples):
    with pytest.raises(ValueError, match=r"pyramid_noise=1\.5: "):
        samples(pyramid_noise=1.5)


def test_pyramid_noise_is_coarse_and_has_unit_variance(samples):
    built = (samples(pyramid_noise=discount) for discount in (0.0, 0.6))
    plain, pyramid = (torch.stack([one[n]["noise"] for n in range(60)]) for one in built)
    assert pyramid.std().item() == pytest.approx(1, abs=0.01)
    means = [noise.mean((2, 3)).std().item() for noise in (plain, pyramid)]
    assert means[1] > 2 * means[0]


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="crop=left: .*buckets, center, random"):
        DataSettings(32, crop="left")
    with pytest.raises(ValueError, match="caption_dropout=2"):
        DataSettings(32, dropout=2)
    for options in ({"cache": "tape"}, {"max_upscale": 0.5}, {"keep_tags": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            DataSettings(32, **options)


def test_one_of_several_captions_is_drawn_and_fixed_samples_use_the_first(tiny):  # S3-14
    class ManyCaptions(Digits):
        def all_captions(self):
            return [[caption, "something else", "a third"] for caption in self.captions()]

    model = tiny()
    samples = DataSettings(32).build_dataset(ManyCaptions(per_digit=2), model)
    texts = [["", "something else", "a third"][k] for k in (1, 2)]
    drawn = [samples[n]["ids"] for n in range(60)]
    counts = [sum(torch.equal(ids, model.tokenize([text])[0]) for ids in drawn) for text in texts]
    assert all(10 <= count <= 30 for count in counts)
    assert torch.equal(samples.load_fixed_sample(0, 0.5)["ids"], model.tokenize([samples.source.captions()[0]])[0])


def test_tags_after_the_first_are_shuffled(tiny):
    class Tagged(Digits):
        def captions(self):
            return ["red, one, two, three, four"] * len(self)

    model = tiny()
    samples = DataSettings(32, shuffle_tags=True, keep_tags=1).build_dataset(Tagged(per_digit=2), model)
    variants = {tuple(samples[n]["ids"].tolist()) for n in range(12)}
    texts = [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in variants]
    assert len(variants) > 6 and all(text.startswith("red") for text in texts)
    assert len({"".join(sorted(text.replace(" ", ""))) for text in texts}) == 1


def test_every_image_is_used_at_every_resolution(samples):
    several = samples(extra_resolutions=[16, 48])
    sizes = [(several.plan.image_index(n) % 10, tuple(several[n]["pixels"].shape[1:])) for n in range(30)]
    assert sorted(sizes) == sorted((i, (side, side)) for i in range(10) for side in (16, 32, 48))
    with pytest.raises(ValueError, match="resolution=20"):
        samples(extra_resolutions=[20])

"""A new word: its rows learn, and nothing else; the file opens in diffusers."""

import pytest
import torch
from safetensors.torch import load_file

from sdft.methods.textual_inversion import EMBEDDING_FILE, TextualInversion

CAPTIONS = ["a photo of <mine> in the sun"]


def prepared(model, **options):
    method = TextualInversion("<mine>", **options)
    method.check(model, CAPTIONS)
    method.prepare(model)
    return method


@pytest.mark.parametrize("vectors", [1, 3])
def test_only_the_rows_learn(tiny, vectors):
    model = tiny()
    prepared(model, num_vectors=vectors)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name.split(".")[-1] for name in learned] == ["rows"]
    assert next(iter(learned.values())).shape == (vectors, model.text_encoder.config.hidden_size)


def test_other_captions_condition_as_before(tiny):
    model = tiny()
    before = model.condition(model.tokenize(["a photo of a cat"]))
    prepared(model)
    assert torch.equal(model.condition(model.tokenize(["a photo of a cat"])), before)


def test_the_word_starts_as_its_init_words(tiny):
    model = tiny()
    plain = model.condition(model.tokenize(["a photo of red ink"]))
    prepared(model, initializer_token="red ink", num_vectors=len(model.tokenizer("red ink").input_ids) - 2)
    assert torch.allclose(model.condition(model.tokenize(["a photo of <mine>"])), plain, atol=1e-6)


@pytest.mark.parametrize("vectors", [1, 3])
def test_plain_diffusers_reads_the_file(tiny, tmp_path, vectors):
    model = tiny()
    method = prepared(model, num_vectors=vectors)
    method.save(model, tmp_path, "mine")
    assert load_file(tmp_path / EMBEDDING_FILE)["<mine>"].shape[0] == vectors
    fresh = tiny()
    method.load(fresh, tmp_path)
    ids = model.tokenize(CAPTIONS)
    assert torch.equal(fresh.tokenize(CAPTIONS), ids)
    assert torch.allclose(fresh.condition(ids), model.condition(ids), atol=1e-6)


def test_bad_words_are_refused(tiny):
    model = tiny()
    for token in ("", "two words"):
        with pytest.raises(ValueError, match="choose a word without spaces"):
            TextualInversion(token)
    with pytest.raises(ValueError, match="num_vectors=0"):
        TextualInversion("<mine>", num_vectors=0)
    with pytest.raises(ValueError, match="placeholder_token=a</w>: the vocabulary has it"):
        TextualInversion("a</w>").check(model, ["a</w>"])
    with pytest.raises(ValueError, match="placeholder_token=<mine>: no caption has it"):
        TextualInversion("<mine>").check(model, ["a photo"])

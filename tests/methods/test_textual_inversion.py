"""Textual inversion trains only the new rows, and diffusers reads its file."""

import pytest
import torch
from safetensors.torch import load_file

from sdft.methods.textual_inversion import EMBEDDING_FILE, TextualInversion

CAPTIONS = ["a photo of <mine> in the sun"]


def prepare_method(model, **options):
    method = TextualInversion("<mine>", **options)
    method.check(model, CAPTIONS)
    method.prepare(model)
    return method


@pytest.mark.parametrize("vectors", [1, 3])
def test_only_the_rows_are_trainable(tiny, vectors):
    model = tiny()
    prepare_method(model, num_vectors=vectors)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name.split(".")[-1] for name in trainable] == ["rows"]
    assert next(iter(trainable.values())).shape == (vectors, model.clip_l.config.hidden_size)


def test_other_captions_are_unchanged(tiny):
    model = tiny()
    before = model.encode_text(model.tokenize(["a photo of a cat"]))["context"]
    prepare_method(model)
    assert torch.equal(model.encode_text(model.tokenize(["a photo of a cat"]))["context"], before)


def test_the_token_is_initialized_from_the_initializer_token(tiny):
    model = tiny()
    expected = model.encode_text(model.tokenize(["a photo of red ink"]))["context"]
    prepare_method(model, initializer_token="red ink", num_vectors=len(model.tokenizer("red ink").input_ids) - 2)
    assert torch.allclose(model.encode_text(model.tokenize(["a photo of <mine>"]))["context"], expected, atol=1e-6)


@pytest.mark.parametrize("vectors", [1, 3])
def test_plain_diffusers_reads_the_file(tiny, tmp_path, vectors):
    model = tiny()
    method = prepare_method(model, num_vectors=vectors)
    method.save(model, tmp_path, "mine")
    assert load_file(tmp_path / EMBEDDING_FILE)["<mine>"].shape[0] == vectors
    fresh = tiny()
    method.load(fresh, tmp_path)
    ids = model.tokenize(CAPTIONS)
    assert torch.equal(fresh.tokenize(CAPTIONS), ids)
    assert torch.allclose(fresh.encode_text(ids)["context"], model.encode_text(ids)["context"], atol=1e-6)


def test_invalid_options_raise(tiny):
    model = tiny()
    for token in ("", "two words"):
        with pytest.raises(ValueError, match=f"placeholder_token={token!r}: "):
            TextualInversion(token)
    with pytest.raises(ValueError, match="num_vectors=0"):
        TextualInversion("<mine>", num_vectors=0)
    with pytest.raises(ValueError, match="placeholder_token=a</w>: .*vocabulary"):
        TextualInversion("a</w>").check(model, ["a</w>"])
    with pytest.raises(ValueError, match="placeholder_token=<mine>: no caption"):
        TextualInversion("<mine>").check(model, ["a photo"])

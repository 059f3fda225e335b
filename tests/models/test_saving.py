"""A saved pipeline has the files of transformers 4 and 5, with equal weights and tokens."""

import json

import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from sdft.models.loading import load_pretrained
from sdft.models.saving import save_pipeline

CAPTIONS = ["a handwritten five in neon light", "A Café, 3 ½ naïve <b>'s</b>", "", "☕ 東京 42 x"]


def test_a_saved_pipeline_has_the_names_and_files_of_transformers_4_and_loads_unchanged(tiny, tmp_path):
    model = tiny()
    save_pipeline(model, tmp_path / "pipeline")
    tensors = load_file(tmp_path / "pipeline" / "text_encoder" / "model.safetensors")
    assert {key.split(".")[0] for key in tensors} == {"text_model"}
    loaded = load_pretrained(str(tmp_path / "pipeline"))
    for part in ("unet", "vae", "clip_l"):
        expected, weights = (m.get_submodule(part).state_dict() for m in (model, loaded))
        assert expected.keys() == weights.keys() and all(torch.equal(expected[key], weights[key]) for key in expected)
    assert torch.equal(model.tokenize(CAPTIONS), loaded.tokenize(CAPTIONS))


def test_vocab_json_and_merges_txt_suffice_for_the_same_tokens(tiny, tmp_path):
    model = tiny()
    save_pipeline(model, tmp_path / "pipeline")
    folder = tmp_path / "pipeline" / "tokenizer"
    header, *merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert header.startswith("#version")  # transformers 4 skips the first line
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(line.split(" ")) for line in merges])
    assert tokenizer(CAPTIONS).input_ids == model.tokenizer(CAPTIONS).input_ids


def test_a_saved_pipeline_has_no_local_path(tiny, tmp_path):
    save_pipeline(tiny(), tmp_path / "base")
    save_pipeline(load_pretrained(str(tmp_path / "base")), tmp_path / "tuned")
    for file in (tmp_path / "tuned").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8"), file.name


def test_a_pipeline_in_half_precision_has_half_precision_weights(tiny, tmp_path):
    save_pipeline(tiny(), tmp_path / "pipeline", torch.float16)
    for file in (tmp_path / "pipeline").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}

"""CLIP's tokenizer offline, with the vocabulary that open_clip ships and every Stable Diffusion uses."""

import gzip
import json
from pathlib import Path


def load_clip_tokenizer(folder: Path):
    """The tokenizer in `folder`; without a vocabulary there, CLIP's own with the folder's padding and maximum length."""
    from transformers import CLIPTokenizer

    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return CLIPTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocabulary, merges = load_clip_vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        pad_token=settings["pad_token"],
        model_max_length=settings["model_max_length"],
    )


def load_clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """49,408 token ids and 48,894 merges, in CLIP's order: bytes, word-final bytes, merges, start, end."""
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode

    vocabulary_file = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(vocabulary_file, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    symbols = list(bytes_to_unicode().values())
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(merge) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges

"""CLIP's tokenizer offline: open_clip's package carries the vocabulary that every Stable Diffusion uses."""

import gzip
import json
from pathlib import Path


def load_clip_tokenizer(folder: Path):
    """The tokenizer of `folder`; where it holds no vocabulary, CLIP's own, with the padding that the folder names."""
    from transformers import CLIPTokenizer

    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        return CLIPTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary, merges = load_clip_vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        pad_token=settings["pad_token"],
        model_max_length=settings["model_max_length"],
    )


def load_clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """49,408 tokens and 48,894 merges, in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode

    packed = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(packed, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    pieces = list(bytes_to_unicode().values())
    tokens = pieces + [p + "</w>" for p in pieces] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges

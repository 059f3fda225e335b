"""Train tiny-sd's tokenizer: CLIP's byte-level BPE with 1024 tokens, on the captions of the digits and English text."""

import json

from sdft.data.digits import DIGIT_NAMES, STYLES, describe_styles, format_caption
from sdft.models.embedded import TINY_SD

VOCABULARY_SIZE, MAX_LENGTH = 1024, 32


def build_corpus() -> list[str]:
    """Every caption 20 times, so that each caption word becomes one token, and the descriptions of scikit-learn's datasets."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

    styles = list(describe_styles().values()) + [description for _, description in STYLES.values()]
    captions = [format_caption(digit, style) for digit in range(len(DIGIT_NAMES)) for style in styles]
    english = [load().DESCR for load in (load_digits, load_iris, load_wine, load_diabetes, load_breast_cancer)]
    return captions * 20 + english


def train_tokenizer() -> None:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    characters = pre_tokenizers.ByteLevel.alphabet()
    start = {piece: i for i, piece in enumerate(sorted(characters) + [c + "</w>" for c in sorted(characters)])}
    specials = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE, end_of_word_suffix="</w>", initial_alphabet=characters, show_progress=False
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    bpe.train_from_iterator(build_corpus(), trainer)

    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    merges = [m for m in merges if all(part in start or part in {a + b for a, b in merges} for part in m)]
    merges = merges[: VOCABULARY_SIZE - len(start) - len(specials)]
    vocabulary = start | {a + b: len(start) + i for i, (a, b) in enumerate(merges)}
    vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(specials)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(TINY_SD / "tokenizer")
    print(f"{len(tokenizer)} tokens; {tokenizer.tokenize(format_caption(3, describe_styles()['neon']))}")


if __name__ == "__main__":
    train_tokenizer()

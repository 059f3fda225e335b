"""Token ids of prompts, in chunks of the text encoder's length."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_RECENT = 1000  # captions whose token ids are kept


@dataclass
class PromptTokenizer:
    """One tokenizer per text encoder, their `chunk_length`, the `chunks` per prompt, and the vocabulary before placeholders."""

    tokenizers: list
    chunk_length: int
    chunks: int
    base_vocabulary_size: int
    recent: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __getstate__(self):
        return self.__dict__ | {"recent": {}}

    def encode(self, caption: str) -> Tensor:
        """Token ids `[tokenizers * chunks * chunk_length]` of one caption."""
        if caption not in self.recent:
            if len(self.recent) >= MAX_RECENT:
                self.recent.clear()
            self.recent[caption] = self([caption])[0]
        return self.recent[caption]

    def __call__(self, captions: list[str]) -> Tensor:
        """Token ids `[batch, tokenizers * chunks * chunk_length]`, padded or truncated."""
        captions = self.expand_placeholder_tokens(captions)
        return torch.cat([self.tokenize(tokenizer, captions) for tokenizer in self.tokenizers], dim=1)

    def tokenize(self, tokenizer, captions: list[str]) -> Tensor:
        """Token ids `[batch, chunks * chunk_length]` of one tokenizer."""
        if self.chunks == 1:
            single = {"padding": "max_length", "max_length": self.chunk_length, "truncation": True}
            return tokenizer(captions, **single, return_tensors="pt").input_ids
        length, rows = self.chunk_length - 2, []
        bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        for ids in tokenizer(captions, add_special_tokens=False, verbose=False).input_ids:
            chunks = [ids[start : start + length] for start in range(0, length * self.chunks, length)]
            rows.append([t for chunk in chunks for t in [bos, *chunk, eos, *[pad] * (length - len(chunk))]])
        return torch.tensor(rows)

    def expand_placeholder_tokens(self, captions: list[str]) -> list[str]:
        """Replace a placeholder token with several vectors by all of its tokens, as diffusers' pipelines do."""
        if len(self.tokenizers[0]) == self.base_vocabulary_size:
            return captions
        from diffusers.loaders import TextualInversionLoaderMixin

        return TextualInversionLoaderMixin().maybe_convert_prompt(captions, self.tokenizers[0])

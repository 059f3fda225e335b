"""Textual inversion: train only the embeddings of a new token (Gal et al., 2022), in each text encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.methods.base import Method
from sdft.models.safetensors_check import check_safetensors

MAX_VECTORS = 75
EMBEDDING_FILE = "learned_embeds.safetensors"


@dataclass
class TextualInversion(Method):
    """`placeholder_token` in captions stands for `num_vectors` embeddings.

    They are initialized from the tokens of `initializer_token` in turn, or randomly with the vocabulary's mean and deviation.
    """

    placeholder_token: str
    initializer_token: str | None = None
    num_vectors: int = 1
    output_kind: ClassVar[str] = "embedding"

    def __post_init__(self):
        if not self.placeholder_token or any(character.isspace() for character in self.placeholder_token):
            raise ValueError(
                f"placeholder_token={self.placeholder_token!r}: choose a token without spaces, such as my-cat"
            )
        if not 1 <= self.num_vectors <= MAX_VECTORS:
            raise ValueError(
                f"num_vectors={self.num_vectors}: choose from 1 to {MAX_VECTORS}, the maximum length of a prompt"
            )
        if self.initializer_token is not None and not self.initializer_token.strip():
            raise ValueError(
                f"initializer_token={self.initializer_token!r}: choose one or more tokens, or null for random initialization"
            )

    def get_tokens(self) -> list[str]:
        """One token per vector, named as in diffusers."""
        return [self.placeholder_token, *[f"{self.placeholder_token}_{i}" for i in range(1, self.num_vectors)]]

    def check(self, model, captions):
        if taken := sorted(set(self.get_tokens()) & model.tokenizer.get_vocab().keys()):
            raise ValueError(
                f"placeholder_token={taken[0]}: already in the vocabulary; choose a new token, "
                f"such as my-{self.placeholder_token}"
            )
        if not any(self.placeholder_token in caption for caption in captions):
            raise ValueError(
                f"placeholder_token={self.placeholder_token}: no caption contains it, so it would not be trained; "
                f"add it to the captions, or set 'caption_template=\"{{caption}} {self.placeholder_token}\"'"
            )

    def needs_fp32(self, part):
        return part != "unet"  # new rows are computed from the vocabulary

    def prepare(self, model):
        for network in model.text_encoders.values():
            embeddings = network.get_input_embeddings()
            vectors = self.initialize_vectors(model, embeddings.weight)
            network.set_input_embeddings(ExtendedEmbedding(embeddings, vectors))
        for tokenizer in model.tokenizers:
            tokenizer.add_tokens(self.get_tokens())

    def initialize_vectors(self, model, vocabulary: Tensor) -> Tensor:
        """Initial embeddings `[num_vectors, width]`."""
        if self.initializer_token is None:
            return vocabulary.mean(0) + vocabulary.std(0) * torch.randn(self.num_vectors, vocabulary.shape[1])
        ids = model.tokenizer(self.initializer_token, add_special_tokens=False).input_ids
        return vocabulary[[ids[i % len(ids)] for i in range(self.num_vectors)]]

    def save(self, model, folder: Path, name: str):
        from sdft.lora.formats import write_safetensors

        folder.mkdir(parents=True, exist_ok=True)
        rows = {part: network.get_input_embeddings().rows for part, network in model.text_encoders.items()}
        tensors = rows if len(rows) > 1 else {self.placeholder_token: rows["clip_l"]}
        write_safetensors(folder / EMBEDDING_FILE, tensors, {})

    def load(self, model, folder: Path):
        from safetensors.torch import load_file

        check_safetensors(folder / EMBEDDING_FILE, "embedding")
        tensors, pipeline = load_file(folder / EMBEDDING_FILE), model.build_pipeline()
        for (part, network), tokenizer in zip(model.text_encoders.items(), model.tokenizers, strict=True):
            rows = tensors[part if len(tensors) > 1 else self.placeholder_token]
            pipeline.load_textual_inversion(
                {self.placeholder_token: rows}, token=self.placeholder_token, text_encoder=network, tokenizer=tokenizer
            )


class ExtendedEmbedding(nn.Module):
    """An embedding with frozen rows followed by trainable rows."""

    def __init__(self, frozen: nn.Embedding, rows: Tensor):
        super().__init__()
        self.frozen, self.rows = frozen, nn.Parameter(rows.clone())

    @property
    def weight(self) -> Tensor:
        return self.frozen.weight

    def forward(self, ids: Tensor) -> Tensor:
        count = len(self.weight)
        new = F.embedding((ids - count).clamp(min=0), self.rows).to(self.weight.dtype)
        return torch.where((ids < count)[..., None], self.frozen(ids.clamp(max=count - 1)), new)

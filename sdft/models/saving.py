"""Save Stable Diffusion as a diffusers pipeline that opens under transformers 4 and 5."""

from pathlib import Path

import torch

from sdft.models.stable_diffusion import StableDiffusion

TEXT_MODEL_PREFIX = "text_model."  # of the text encoder's weights in transformers 4; 5 reads both


def save_pipeline(model: StableDiffusion, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the pipeline in `dtype` (default: its own), with the text encoder's and the tokenizer's files of transformers 4.

    transformers 4 reads a CLIP tokenizer from `vocab.json` and `merges.txt` only, and initializes weights under other names anew.
    """
    pipeline = model.build_pipeline()
    if dtype is not None:
        pipeline.to(dtype=dtype)
    pipeline.save_pretrained(folder)
    weights = pipeline.text_encoder.state_dict()
    weights = {TEXT_MODEL_PREFIX + key.removeprefix(TEXT_MODEL_PREFIX): weight for key, weight in weights.items()}
    pipeline.text_encoder.save_pretrained(folder / "text_encoder", state_dict=weights)
    pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))

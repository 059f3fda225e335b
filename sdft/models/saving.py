"""Save Stable Diffusion as a diffusers pipeline that opens under transformers 4 and 5."""

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

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


def save_pipeline_folder(model: StableDiffusion, folder: Path, dtype: torch.dtype, record: dict[str, str]) -> None:
    """Write a diffusers pipeline atomically, with its provenance in `merge.json`."""
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns about any change of dtype
    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_pipeline(model, partial, dtype)
        (partial / "merge.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise

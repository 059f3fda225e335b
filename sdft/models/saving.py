"""Save Stable Diffusion as a diffusers pipeline that opens under transformers 4 and 5."""

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

import torch

from sdft.models.clip_text_model import add_text_model_prefix
from sdft.models.diffusion_model import DiffusionModel


def save_pipeline(model: DiffusionModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the pipeline in `dtype` (default: its own), with text encoders and tokenizers as transformers 4 reads them.

    transformers 4 reads a CLIP tokenizer from `vocab.json` and `merges.txt` only, and initializes weights under other names anew.
    """
    pipeline = model.build_pipeline()
    if dtype is not None:
        pipeline.to(dtype=dtype)
    text_encoders = {model.component_names[part] for part in model.text_encoders}
    for name, component in pipeline.components.items():
        if name in text_encoders:
            weights = {add_text_model_prefix(key): weight for key, weight in component.state_dict().items()}
            component.save_pretrained(folder / name, state_dict=weights)
        elif component is not None:
            component.save_pretrained(folder / name)
    pipeline.save_config(folder)
    for name in model.tokenizer_names:
        getattr(pipeline, name).backend_tokenizer.model.save(str(folder / name))


def save_pipeline_folder(model: DiffusionModel, folder: Path, dtype: torch.dtype, record: dict[str, str]) -> None:
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

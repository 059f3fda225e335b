"""Runs in an environment of `compatibility.py`: load every file with plain diffusers and write the weights that result.

Arguments: a JSON file with `versions` of packages, `pipeline_class`, the folders `base` and `config` (the same without weights),
`adapters`, `pipelines`, `single_files`, `embeddings`, `prompts` and `out`.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

TEXT_ENCODERS = {"text_encoder": ("tokenizer", "clip_l"), "text_encoder_2": ("tokenizer_2", "clip_g")}


def open_pipeline(job: dict, folder: str):
    return getattr(diffusers, job["pipeline_class"]).from_pretrained(folder, local_files_only=True)


def read_weights(pipeline) -> dict[str, torch.Tensor]:
    """Weights by `part.layer.weight`, the text encoder without its prefix, layers with an adapter as without."""
    return {
        f"{part}.{key.removeprefix('text_model.').replace('.base_layer', '')}": weight.float().contiguous().clone()
        for part in ("unet", *TEXT_ENCODERS, "vae")
        for key, weight in (getattr(pipeline, part).state_dict() if part in pipeline.components else {}).items()
        if "lora_" not in key and "position_ids" not in key
    }


def load_adapter(job: dict, file: str) -> dict[str, torch.Tensor]:
    """The weights with the adapter's change; only the layers that changed."""
    pipeline = open_pipeline(job, job["base"])
    before = read_weights(pipeline)
    path = Path(file)
    pipeline.load_lora_weights(path.parent, weight_name=path.name, local_files_only=True)
    pipeline.fuse_lora()
    after = read_weights(pipeline)
    return {key: after[key] - before[key] for key in before if not torch.equal(after[key], before[key])}


def load_pipeline(job: dict, folder: str) -> dict[str, torch.Tensor]:
    """The weights, and the token ids of the prompts."""
    pipeline = open_pipeline(job, folder)
    return read_weights(pipeline) | {"tokens": tokenize(pipeline, job["prompts"])}


def load_single_file(job: dict, file: str) -> dict[str, torch.Tensor]:
    pipeline_class = getattr(diffusers, job["pipeline_class"])
    pipeline = pipeline_class.from_single_file(file, config=job["config"], local_files_only=True)
    return read_weights(pipeline) | {"tokens": tokenize(pipeline, job["prompts"])}


def load_embedding(job: dict, file: str) -> dict[str, torch.Tensor]:
    """The rows that the file adds to the vocabularies; of two encoders, each takes its tensor."""
    pipeline, rows = open_pipeline(job, job["base"]), {}
    parts = {part: names for part, names in TEXT_ENCODERS.items() if part in pipeline.components}
    for part, (tokenizer_name, key) in parts.items():
        network, tokenizer = getattr(pipeline, part), getattr(pipeline, tokenizer_name)
        count = len(tokenizer)
        if len(parts) == 1:
            pipeline.load_textual_inversion(file, local_files_only=True)
        else:
            vectors = load_file(file)[key]
            pipeline.load_textual_inversion(vectors, token="<cat>", text_encoder=network, tokenizer=tokenizer)
        rows[part] = network.get_input_embeddings().weight[count:].detach().clone()
    return rows


def tokenize(pipeline, prompts: list[str]) -> torch.Tensor:
    return pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def main(job: dict) -> None:
    for name, version in job["versions"].items():
        assert importlib.import_module(name).__version__ == version, name
    loaders = {
        "adapters": load_adapter,
        "pipelines": load_pipeline,
        "single_files": load_single_file,
        "embeddings": load_embedding,
    }
    results = {}
    for kind, load in loaders.items():
        for name, file in job[kind].items():
            try:
                save_file(load(job, file), Path(job["out"]) / f"{name}.safetensors")
                results[name] = "read"
            except Exception as error:  # a reader may fail in any way; the table says how
                traceback.print_exc()
                results[name] = type(error).__name__
    (Path(job["out"]) / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))

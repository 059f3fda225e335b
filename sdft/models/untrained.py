"""Build a model with random weights from its configurations."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from sdft.models.clip_tokenizer import load_clip_tokenizer
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.family import find_model_class
from sdft.models.model_folder import (
    build_untrained_network,
    list_networks,
    load_scheduler,
    name_part_in_errors,
    read_pipeline_options,
)
from sdft.models.weight_sources import build_random_network


def build_untrained(
    folder: Path, choose_dtype: Callable[[str], torch.dtype] = lambda part: torch.float32
) -> DiffusionModel:
    """Networks with the configurations in `folder`, initialised from the global generator with equal values in every dtype."""
    model_class, networks, tokenizers = find_model_class(folder), {}, []
    for part, component in list_networks(model_class):
        build = partial(build_untrained_network, model_class.network_classes[component], folder, component)
        with name_part_in_errors(folder, component):
            dtype = choose_dtype(part)
            networks[part] = build() if dtype is torch.float32 else build_random_network(build, dtype)
    for name in model_class.tokenizer_names:
        with name_part_in_errors(folder, name):
            tokenizers.append(load_clip_tokenizer(folder / name))
    model = model_class(networks, tokenizers, load_scheduler(folder))
    read_pipeline_options(model, folder)
    return model

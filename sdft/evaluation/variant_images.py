"""Generate the images of every model variant, prompt by prompt; existing ones are reused."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from sdft.evaluation.protocol import PromptGroup
from sdft.evaluation.variants import BASE, ModelVariant
from sdft.lora.scaling import scale_adapters
from sdft.models.image_cache import (
    collect_image_settings,
    format_folder_name,
    format_image_name,
    generate_missing_images,
)
from sdft.models.precision import load_in_precision, load_model, set_precision
from sdft.models.sampling import Sampling

BASE_IMAGE_CACHE = Path("outputs/cache/images")  # base-model images, shared by all runs


def generate_variant_images(
    folder: Path,
    cfg: DictConfig,
    states: list[ModelVariant],
    groups: list[PromptGroup],
    sampling: Sampling,
    device: str,
):
    """Yield every state with its files by group. The model is reloaded only to replace another variant's weights.

    All have the precision of the training: a base whose weights were cast is reloaded, too, before adapters are added.
    """
    model, loaded, dtype = None, BASE, instantiate(cfg.precision).dtype if cfg.get("precision") else torch.float32

    def needs_fp32(part: str) -> bool:
        return any(state.needs_fp32(part) for state in states)

    for state in states:
        if model is None or (loaded != state.source and (loaded != BASE or dtype is not torch.float32)):
            model = None  # frees its memory
            torch.manual_seed(cfg.seed)
            model, loaded = load_model(cfg.model, dtype, needs_fp32), BASE
            for other in states if state is states[0] else []:
                other.check(model)
        if loaded != state.source:
            with load_in_precision(dtype, needs_fp32):
                state.load(model)
            loaded = state.source
        set_precision(model, dtype)
        model.to(device)
        with scale_adapters(model, state.scale):
            yield state, generate_group_images(folder, state, groups, sampling, model, cfg.resolution)


def generate_group_images(
    folder: Path, state: ModelVariant, groups: list[PromptGroup], sampling: Sampling, model, resolution: int
) -> dict[str, list[Path]]:
    """Image files of every group, prompt by prompt; only missing ones are generated."""
    settings = collect_image_settings(model, sampling, resolution)
    parent = BASE_IMAGE_CACHE if state.source == BASE else folder / "images"
    requests = {group.name: sampling.requests(group.prompts) for group in groups}
    by_name = {format_image_name(*request): request for listed in requests.values() for request in listed}
    paths = generate_missing_images(
        by_name,
        sampling,
        model,
        resolution,
        parent / format_folder_name(state.label, settings),
        settings,
        f"generate {state.label}",
    )
    files = dict(zip(by_name, paths, strict=True))
    return {name: [files[format_image_name(*request)] for request in listed] for name, listed in requests.items()}

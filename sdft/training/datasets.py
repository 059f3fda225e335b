"""Datasets of a run: training (with class images), validation, and the caches of their frozen inputs."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.data import Dataset

import sdft.distributed as processes
from sdft.data.dataset import ImageDataset
from sdft.data.latent_cache import fill_caches
from sdft.data.prior_preservation import PriorPreservationDataset
from sdft.data.transforms import apply_caption_template
from sdft.rng import Draw
from sdft.training.disk_space import check_disk_space, estimate_run_size
from sdft.training.inputs import RunInputs


@dataclass
class RunDatasets:
    training: Dataset
    validation: Dataset | None  # None: the validation loss uses some of the training images


def load_source(cfg: DictConfig) -> ImageDataset:
    """The images and captions; of several processes of a machine, one scans and inspects them. Collective."""

    def load() -> ImageDataset:
        source = apply_caption_template(instantiate(cfg.data), cfg.caption_template)
        if processes.world_size() > 1:
            source.sizes()  # all processes need them
        return source

    return processes.compute_on_node(load)


def build_datasets(parts: dict, inputs: RunInputs, class_source: ImageDataset | None) -> RunDatasets:
    """Training samples, as pairs with class images if there are any, and held-out samples."""
    settings, model = parts["dataset"], inputs.model
    training = settings.build_dataset(inputs.training_source, model, samples_per_step=inputs.step_sizes)
    if class_source is not None:
        class_dataset = settings.build_dataset(class_source, model, Draw.CLASS_IMAGES)
        training = PriorPreservationDataset(training, class_dataset, parts["prior"].weight)
    validation = inputs.validation_source and settings.build_dataset(
        inputs.validation_source, model, Draw.HELD_OUT_IMAGES
    )
    smoothness = parts["smoothness"]
    required_draws = parts["objective"].required_draws | (smoothness.required_draws if smoothness.weight else set())
    for dataset in [*training.datasets, *([validation] if validation else [])]:
        dataset.required_draws = required_draws
    return RunDatasets(training, validation)


def fill_input_caches(
    cfg: DictConfig, parts: dict, inputs: RunInputs, module, datasets: RunDatasets, folder: Path
) -> None:
    """Cache the outputs of frozen encoders, which are then offloaded; `ValueError` if the disk is too small for the run."""
    training = parts["training"]
    run_size = estimate_run_size(module, training, parts["sampling"], inputs.prompts, cfg.resolution, inputs.steps)
    check = partial(check_disk_space, folder, run_size, training=training)
    trains_text_encoder = any(module.get_trainable_parts().keys() & module.model.text_encoders)
    cache_text = not trains_text_encoder and not parts["dataset"].shuffle_tags
    all_datasets = [*datasets.training.datasets, *([datasets.validation] if datasets.validation else [])]
    module.offloaded_parts = fill_caches(all_datasets, module.model, text=cache_text, check=check)

"""Train a LoRA on a single image, cached by image, caption, base model and settings."""

import copy
import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.models.cpu_threads import limit_threads
from sdft.models.stable_diffusion import StableDiffusion
from sdft.runs.files import atomic_write
from sdft.runs.hashing import hash_weights
from sdft.training.precision import Precision
from sdft.training.strategy import Strategy

COMPLETE_MARKER = "adapter.json"  # written last; without it training did not finish
ADAPTER_NAME = "single-image"


@dataclass
class SingleImageTrainer:
    """Train the UNet's attention on one image, with uniform timesteps and no loss weighting.

    The defaults are DiffMorpher's (Zhang et al., 2023).
    """

    rank: int = 16
    steps: int = 200
    lr: float = 2e-4
    seed: int = 0

    def __post_init__(self):
        for key, value in {"rank": self.rank, "steps": self.steps}.items():
            if value < 1:
                raise ValueError(f"{key}={value}: choose 1 or more")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr}: choose more than 0; 2e-4 is usual")

    def collect_settings(self, base: StableDiffusion, image: CaptionedImage, precision: Precision) -> dict:
        """Everything the adapter depends on; `base` has no adapters."""
        source = SingleImageDataset(image)
        facts = {"base": hash_weights(base), "prediction": base.prediction_type, "prompt_chunks": base.prompt_chunks}
        data = {"image": source.digest(0), "size": list(image.image.size), "caption": image.caption}
        return {**asdict(self), **facts, **data, "precision": precision.compute_dtype}

    def load_or_train(
        self, base: StableDiffusion, image: CaptionedImage, precision: Precision, accelerator: str, cache_folder: Path
    ) -> "CachedAdapter":
        """Adapter of `image`, at a size that the model supports, in a subfolder of `cache_folder`; `base` is unchanged."""
        settings = self.collect_settings(base, image, precision)
        folder = cache_folder / self.format_name(settings)
        if (folder / COMPLETE_MARKER).is_file():
            return CachedAdapter(folder, 0.0)
        start = time.perf_counter()
        method, model = self.build_method(), copy.deepcopy(base).cpu()
        self.train_adapter(model, method, image, precision, Strategy(accelerator=accelerator, devices=1))
        method.save(model, folder, ADAPTER_NAME)
        seconds = time.perf_counter() - start
        with atomic_write(folder / COMPLETE_MARKER) as file:
            file.write_text(json.dumps(settings | {"seconds": round(seconds, 1)}, indent=1, ensure_ascii=False) + "\n")
        return CachedAdapter(folder, seconds)

    @staticmethod
    def format_name(settings: dict) -> str:
        from sdft.models.image_cache import format_folder_name

        return format_folder_name(settings["caption"], settings)

    def build_method(self):
        from sdft.methods.lora import LoRA

        return LoRA(self.rank, self.rank, text_encoder=False)

    def train_adapter(
        self, model: StableDiffusion, method, image: CaptionedImage, precision: Precision, strategy: Strategy
    ) -> None:
        """Train with the regular dataset, loss and trainer, without the files of a run."""
        from sdft.data.datamodule import TrainingDataModule
        from sdft.losses.diffusion import DiffusionLoss
        from sdft.training.callbacks.metrics import TrainingMetrics
        from sdft.training.callbacks.progress_bar import ProgressBar
        from sdft.training.lr_schedule import LRSchedule
        from sdft.training.module import DiffusionModule
        from sdft.training.trainer import build_lightning_trainer

        method.check(model, [image.caption])
        optimizer = partial(torch.optim.AdamW, lr=self.lr, weight_decay=1e-2)
        rates = dict.fromkeys(model.parts, self.lr)
        options = {"lr": rates, "compute_dtype": precision.dtype, "seed": self.seed}
        module = DiffusionModule(model, method, DiffusionLoss("none"), optimizer, LRSchedule("constant"), **options)
        model.to(strategy.device())
        samples, training_metrics = self.build_samples(model, image), TrainingMetrics(max(1, self.steps // 20))
        trainer = build_lightning_trainer(
            **strategy.trainer_kwargs(),
            precision=precision.lightning_precision,
            max_steps=self.steps,
            logger=False,
            callbacks=[training_metrics, ProgressBar(training_metrics)],
            enable_checkpointing=False,
        )
        with limit_threads(model.unet, model.batch_shape(1, samples.sizes[0])):
            trainer.fit(module, TrainingDataModule(samples, 1))
        if module.skipped_steps:
            raise ValueError(
                f"lr={self.lr}: NaN/Inf gradients in {int(module.skipped_steps)} of {self.steps} steps; choose a lower lr"
            )

    def build_samples(self, model: StableDiffusion, image: CaptionedImage):
        """Training samples of the image, with cached latents and text contexts."""
        from sdft.data.latent_cache import (
            TensorCache,
            build_context_encoder,
            build_latent_encoder,
            compute_missing,
            list_required_contexts,
            list_required_latents,
        )
        from sdft.data.training_samples import DataSettings

        samples = DataSettings(max(image.image.size), seed=self.seed, max_upscale=0).build_dataset(
            SingleImageDataset(image), model
        )
        samples.sizes = [image.image.size]
        caches = TensorCache(None), TensorCache(None)
        compute_missing(caches[0], list_required_latents([samples]), build_latent_encoder(model), "latents")
        compute_missing(caches[1], list_required_contexts([samples]), build_context_encoder(model), "captions")
        samples.latents, samples.contexts = caches
        return samples


@dataclass
class CachedAdapter:
    """A folder with an adapter, and the seconds of its training, 0 if it was cached."""

    folder: Path
    seconds: float


class SingleImageDataset(ImageDataset):
    """Dataset of one image."""

    def __init__(self, sample: CaptionedImage):
        self.sample = sample

    def __len__(self):
        return 1

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.sample

    def sizes(self) -> list[tuple[int, int]]:
        return [self.sample.image.size]

    def captions(self) -> list[str]:
        return [self.sample.caption]

    def describe(self) -> str:
        return self.sample.name

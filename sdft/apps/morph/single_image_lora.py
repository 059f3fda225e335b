"""A LoRA of one picture, learned once and kept: the same picture, words, base and settings find it again."""

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

COMPLETE_MARKER = "learned.json"  # written last; without it nothing was learned to the end
ADAPTER_NAME = "one-picture"


@dataclass
class SingleImageTrainer:
    """How a picture is learned by heart: the UNet's attention alone, at each timestep as likely, without a weighting.

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

    def settings(self, base: StableDiffusion, picture: CaptionedImage, precision: Precision) -> dict:
        """All that the adapter depends on; `base` is as it came, without adapters."""
        source = SingleImageDataset(picture)
        facts = {"base": hash_weights(base), "prediction": base.prediction_type, "prompt_chunks": base.prompt_chunks}
        shown = {"picture": source.digest(0), "size": list(picture.image.size), "caption": picture.caption}
        return {**asdict(self), **facts, **shown, "precision": precision.compute_dtype}

    def load_or_train(
        self, base: StableDiffusion, picture: CaptionedImage, precision: Precision, accelerator: str, place: Path
    ) -> "CachedAdapter":
        """The adapter of `picture` at its own size, which the model takes, in a folder of `place`; `base` stays as it is."""
        settings = self.settings(base, picture, precision)
        folder = place / self.name(settings)
        if (folder / COMPLETE_MARKER).is_file():
            return CachedAdapter(folder, 0.0)
        began = time.perf_counter()
        method, model = self.method(), copy.deepcopy(base).cpu()
        self.fit(model, method, picture, precision, Strategy(accelerator=accelerator, devices=1))
        method.save(model, folder, ADAPTER_NAME)
        seconds = time.perf_counter() - began
        with atomic_write(folder / COMPLETE_MARKER) as file:
            file.write_text(json.dumps(settings | {"seconds": round(seconds, 1)}, indent=1, ensure_ascii=False) + "\n")
        return CachedAdapter(folder, seconds)

    @staticmethod
    def name(settings: dict) -> str:
        from sdft.models.image_cache import format_folder_name

        return format_folder_name(settings["caption"], settings)

    def method(self):
        from sdft.methods.lora import LoRA

        return LoRA(self.rank, self.rank, text_encoder=False)

    def fit(
        self, model: StableDiffusion, method, picture: CaptionedImage, precision: Precision, strategy: Strategy
    ) -> None:
        """The project's own step, stream and loop, without the files of a run."""
        from sdft.data.datamodule import TrainingDataModule
        from sdft.losses.diffusion import DiffusionLoss
        from sdft.training.callbacks.metrics import TrainingMetrics
        from sdft.training.callbacks.progress_bar import ProgressBar
        from sdft.training.lr_schedule import LRSchedule
        from sdft.training.module import DiffusionModule
        from sdft.training.trainer import build_lightning_trainer

        method.check(model, [picture.caption])
        optimizer = partial(torch.optim.AdamW, lr=self.lr, weight_decay=1e-2)
        rates = dict.fromkeys(model.parts, self.lr)
        about = {"lr": rates, "compute_dtype": precision.dtype, "seed": self.seed}
        module = DiffusionModule(model, method, DiffusionLoss("none"), optimizer, LRSchedule("constant"), **about)
        model.to(strategy.device())
        samples, training_metrics = self.samples(model, picture), TrainingMetrics(max(1, self.steps // 20))
        trainer = build_lightning_trainer(
            **strategy.trainer(),
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
                f"lr={self.lr}: {int(module.skipped_steps)} of {self.steps} gradients were no number; choose a lower lr"
            )

    def samples(self, model: StableDiffusion, picture: CaptionedImage):
        """The picture's stream, with its latents and its words computed once."""
        from sdft.data.latent_cache import (
            TensorCache,
            build_context_encoder,
            build_latent_encoder,
            compute_missing,
            list_required_contexts,
            list_required_latents,
        )
        from sdft.data.training_samples import DataSettings

        samples = DataSettings(max(picture.image.size), seed=self.seed, max_upscale=0).samples(
            SingleImageDataset(picture), model
        )
        samples.sizes = [picture.image.size]
        stores = TensorCache(None), TensorCache(None)
        compute_missing(stores[0], list_required_latents([samples]), build_latent_encoder(model), "latents")
        compute_missing(stores[1], list_required_contexts([samples]), build_context_encoder(model), "captions")
        samples.latents, samples.contexts = stores
        return samples


@dataclass
class CachedAdapter:
    """A folder with an adapter, and the seconds that it took now: 0 when it was there."""

    folder: Path
    seconds: float


class SingleImageDataset(ImageDataset):
    """One picture."""

    def __init__(self, picture: CaptionedImage):
        self.picture_of_it = picture

    def __len__(self):
        return 1

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.picture_of_it

    def sizes(self) -> list[tuple[int, int]]:
        return [self.picture_of_it.image.size]

    def captions(self) -> list[str]:
        return [self.picture_of_it.caption]

    def describe(self) -> str:
        return self.picture_of_it.name

"""Train a LoRA on a single image, cached by image, caption, base model and settings."""

import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sdft.apps.morph.single_image_dataset import SingleImageDataset, build_samples
from sdft.data.dataset import CaptionedImage
from sdft.models.diffusion_model import DiffusionModel
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

    def collect_settings(self, base: DiffusionModel, image: CaptionedImage, precision: Precision) -> dict:
        """Everything the adapter depends on; `base` has no adapters."""
        source = SingleImageDataset(image)
        facts = {"base": hash_weights(base), "prediction": base.prediction_type, "prompt_chunks": base.prompt_chunks}
        facts |= base.text_options
        data = {"image": source.digest(0), "size": list(image.image.size), "caption": image.caption}
        return {**asdict(self), **facts, **data, "precision": precision.compute_dtype}

    def load_or_train(
        self, base: DiffusionModel, image: CaptionedImage, precision: Precision, accelerator: str, cache_folder: Path
    ) -> "CachedAdapter":
        """Adapter of `image`, at a size that the model supports, in a subfolder of `cache_folder`; `base` is unchanged."""
        settings = self.collect_settings(base, image, precision)
        folder = cache_folder / self.format_name(settings)
        if (folder / COMPLETE_MARKER).is_file():
            return CachedAdapter(folder, 0.0)
        start = time.perf_counter()
        method, model = self.build_method(), copy.deepcopy(base).cpu()
        module = self.train_adapter(model, method, image, precision, Strategy(accelerator=accelerator, devices=1))
        with module.masters.use_in_networks():
            method.save(model, folder, ADAPTER_NAME)
        seconds = time.perf_counter() - start
        with atomic_write(folder / COMPLETE_MARKER) as file:
            text = json.dumps(settings | {"seconds": round(seconds, 1)}, indent=1, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")
        return CachedAdapter(folder, seconds)

    @staticmethod
    def format_name(settings: dict) -> str:
        from sdft.models.image_cache import format_folder_name

        return format_folder_name(settings["caption"], settings)

    def build_method(self):
        from sdft.methods.lora import LoRA

        return LoRA(self.rank, self.rank, text_encoder=False)

    def train_adapter(
        self, model: DiffusionModel, method, image: CaptionedImage, precision: Precision, strategy: Strategy
    ):
        """Train with the regular dataset, loss and trainer, without the files of a run; return the module."""
        from sdft.apps.morph.adapter_training import build_module, fit_module

        method.check(model, [image.caption])
        module = build_module(model, method, precision, self.lr, self.seed)
        model.to(strategy.device())
        fit_module(module, build_samples(model, image, self.seed), self.steps, precision, strategy)
        if module.skipped_steps:
            raise ValueError(
                f"lr={self.lr}: NaN/Inf gradients in {int(module.skipped_steps)} of {self.steps} steps; choose a lower lr"
            )
        return module


@dataclass
class CachedAdapter:
    """A folder with an adapter, and the seconds of its training, 0 if it was cached."""

    folder: Path
    seconds: float

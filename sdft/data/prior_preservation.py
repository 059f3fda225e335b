"""Prior preservation: pictures of the subject's class, made by the base model, keep the class as it was (Ruiz et al., 2023)."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from sdft.data.dataset import ImageDataset
from sdft.data.image_folder import ImageFolder, format_list
from sdft.data.images import IMAGE_SUFFIXES
from sdft.data.training_samples import TrainingDataset
from sdft.data.transforms import ImageSubset
from sdft.models.image_cache import MANIFEST_FILE, collect_image_settings, format_folder_name, generate_missing_images
from sdft.models.sampling import Sampling

CLASS_IMAGES_DIR = Path("outputs/class_images")


@dataclass
class PriorPreservation:
    """`images` pictures of `prompt`, made once in `path` (default: a folder for each prompt, model and way of sampling).

    `images=0` takes the pictures that lie in `path` as they are. `weight=0` is no prior.
    """

    prompt: str
    images: int = 100
    weight: float = 1.0
    path: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"prior_loss_weight={self.weight}: choose 0 (off) or more; 1 is usual")
        if self.images < 0:
            raise ValueError(
                f"num_class_images={self.images}: choose 1 or more, or 0 to use those in class_path as they are"
            )
        if not self.images and not self.path:
            raise ValueError("num_class_images=0: give class_path=FOLDER, whose pictures are then used as they are")
        if self.path and not self.images:
            self.load_user_images()
        elif self.path and Path(self.path).expanduser().is_dir():
            self.check_foreign_images(Path(self.path).expanduser())

    def check_no_overlap(self, taught: str | None) -> None:
        """Neither folder of pictures may lie in the other, or one would be learned as the other."""
        if self.path and taught:
            one, other = Path(self.path).expanduser().resolve(), Path(taught).expanduser().resolve()
            if one.is_relative_to(other) or other.is_relative_to(one):
                raise ValueError(f"class_path={self.path}: lies in data.path={taught}, or holds it; keep them apart")

    def load_user_images(self) -> ImageDataset:
        """The user's own pictures of the class."""
        try:
            return ImageFolder(self.path, caption=self.prompt)
        except ValueError as error:
            raise ValueError(str(error).replace("data.path", "class_path")) from None

    def check_foreign_images(self, folder: Path) -> None:
        """Pictures that this project has not made must not be taken for pictures of the class."""
        files = sorted(
            p.name for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
        )
        strays = [name for name in files if not re.fullmatch(r"\d{5}\.png", name)]
        if strays or (files and not (folder / MANIFEST_FILE).is_file()):
            raise ValueError(
                f"class_path={self.path}: it holds pictures that its {MANIFEST_FILE} does not name ({format_list(strays or files)}); "
                "move them out, or give num_class_images=0 to use all that lies there as it is"
            )

    def source(self, model, sampling: Sampling, resolution: int) -> ImageDataset:
        """The pictures of the class; those that the manifest does not vouch for are made now, on the model's device."""
        if not self.images:
            return self.load_user_images()
        settings = {"prompt": self.prompt, "seed": self.seed, **collect_image_settings(model, sampling, resolution)}
        folder = (
            Path(self.path).expanduser() if self.path else CLASS_IMAGES_DIR / format_folder_name(self.prompt, settings)
        )
        wanted = {f"{number:05d}.png": (self.prompt, self.seed + number) for number in range(self.images)}
        title = f"class    {self.prompt!r}"
        generate_missing_images(wanted, sampling, model, resolution, folder, settings, title, key="class_path")
        pictures = ImageFolder(str(folder), caption=self.prompt)
        found = [i for i, file in enumerate(pictures.files) if file.name in wanted]
        if len(found) < len(wanted):
            raise ValueError(
                f"class_path={folder}: {len(wanted) - len(found)} of its pictures are not seen by this process"
            )
        return ImageSubset(pictures, found)


class PriorPreservationDataset(Dataset):
    """A picture of the subject beside one of its class in every sample.

    Losses stay per picture. Their weights, 2 and 2 * `weight`, make the mean over both halves what diffusers means by prior
    preservation: mean(subject) + weight * mean(class), so the subject's gradient is that of training without a prior.
    """

    def __init__(self, subject: TrainingDataset, prior: TrainingDataset, weight: float):
        self.subject, self.prior, self.weight = subject, prior, weight
        self.settings, self.source, self.load_fixed_sample, self.plan = (
            subject.settings,
            subject.source,
            subject.load_fixed_sample,
            subject.plan,
        )
        self.datasets = [subject, prior]
        prior.target_sizes = sorted(set(subject.sizes))

    def __len__(self):
        return len(self.subject)

    def __getitem__(self, which: int | tuple[int, float]) -> dict[str, Tensor]:
        """The picture of the class is brought to the size of the subject's."""
        number, share = which if isinstance(which, tuple) else (which, 1.0)
        one = self.subject.load_sample(number, share)
        other = self.prior.load_sample(number, share, self.subject.sizes[int(one["index"])])
        one["weight"], other["weight"] = torch.tensor(2.0), torch.tensor(2.0 * self.weight)
        return {key: torch.stack([one[key], other[key]]) for key in one}

    @staticmethod
    def collate(samples: list[dict]) -> dict[str, Tensor]:
        """Pairs one after another in a batch twice as long; single samples as they are."""
        batch = default_collate(samples)
        return {key: value.flatten(0, 1) if batch["mask"].ndim == 5 else value for key, value in batch.items()}

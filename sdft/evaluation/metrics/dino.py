"""The judge of subjects: a self-supervised vision transformer (DINO, Caron et al., 2021), as DreamBooth's score uses it."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from PIL import Image
from torch import Tensor

from sdft.evaluation.metrics.feature_extractor import FeatureExtractor, ScorerUnavailableError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which it was trained on
RESIZE_RATIO = 256 / 224  # the short side before the centre crop, as in DINO's own evaluation


class DinoFeatureExtractor(FeatureExtractor):
    """`name` is a folder or a hub id that transformers opens: facebook/dino-vits16 gives the published scores."""

    def __init__(self, name: str, device: str = "cpu", batch_size: int = 64):
        from transformers import AutoModel
        from transformers.utils import logging

        super().__init__(device, batch_size)
        logging.disable_progress_bar()
        try:
            place = Path(name).expanduser() if Path(name).exists() else name
            self.model = AutoModel.from_pretrained(place, trust_remote_code=False)
        except UnpicklingError:
            raise ValueError(f"metrics.dino={name}: its weights hold more than tensors, and are not opened") from None
        except (OSError, ValueError):
            raise ScorerUnavailableError(
                f"metrics.dino={name}: no such folder, and not to be had from the hub; "
                "fetch it once with `hf download facebook/dino-vits16`, or give its folder as metrics.dino=FOLDER"
            ) from None
        self.model, self.name = self.model.eval(), name

    @torch.no_grad()
    def forward_batch(self, pictures: list[Image.Image]) -> Tensor:
        """The class token of the last layer."""
        stack = torch.stack([preprocess_image(picture, self.model.config.image_size) for picture in pictures])
        return self.move_to_device()(pixel_values=stack.to(self.device)).last_hidden_state[:, 0].cpu()


def preprocess_image(picture: Image.Image, side: int) -> Tensor:
    """The middle of the picture, resized in shape, as normalised `[3, side, side]`."""
    from torchvision.transforms import v2

    steps = [v2.PILToTensor(), v2.Resize(round(side * RESIZE_RATIO), v2.InterpolationMode.BICUBIC, antialias=True)]
    steps += [v2.CenterCrop(side), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return v2.Compose(steps)(picture)

"""DINO features: a self-supervised vision transformer (Caron et al., 2021), as in DreamBooth's subject fidelity score."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from PIL import Image
from torch import Tensor

from sdft.evaluation.metrics.feature_extractor import FeatureExtractor, ScorerUnavailableError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE_RATIO = 256 / 224  # short side before the centre crop, as in DINO's own evaluation


class DinoFeatureExtractor(FeatureExtractor):
    """`name` is a folder or hub id for transformers; facebook/dino-vits16 gives the published scores."""

    def __init__(self, name: str, device: str = "cpu", batch_size: int = 64):
        from transformers import AutoModel
        from transformers.utils import logging

        super().__init__(device, batch_size)
        logging.disable_progress_bar()
        try:
            source = Path(name).expanduser() if Path(name).exists() else name
            self.model = AutoModel.from_pretrained(source, trust_remote_code=False)
        except UnpicklingError:
            raise ValueError(f"metrics.dino={name}: not loaded: the weight file contains more than tensors") from None
        except (OSError, ValueError):
            raise ScorerUnavailableError(
                f"metrics.dino={name}: neither a local folder nor available from the hub; "
                "run `hf download facebook/dino-vits16` once, or set metrics.dino=FOLDER"
            ) from None
        self.model, self.name = self.model.eval(), name

    @torch.no_grad()
    def forward_batch(self, images: list[Image.Image]) -> Tensor:
        """Class token of the last layer."""
        pixels = torch.stack([preprocess_image(image, self.model.config.image_size) for image in images])
        return self.move_to_device()(pixel_values=pixels.to(self.device)).last_hidden_state[:, 0].cpu()


def preprocess_image(image: Image.Image, side: int) -> Tensor:
    """Resize with fixed aspect ratio, centre-crop and normalise to `[3, side, side]`."""
    from torchvision.transforms import v2

    steps = [v2.PILToTensor(), v2.Resize(round(side * RESIZE_RATIO), v2.InterpolationMode.BICUBIC, antialias=True)]
    steps += [v2.CenterCrop(side), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return v2.Compose(steps)(image)

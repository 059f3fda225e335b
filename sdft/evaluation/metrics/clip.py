"""CLIP features of images and texts, from any open_clip model (Radford et al., 2021)."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from PIL import Image
from torch import Tensor

from sdft.evaluation.metrics.feature_extractor import (
    FeatureExtractor,
    ScorerUnavailableError,
    is_offline,
    split_batches,
)
from sdft.models.embedded import TINY_CLIP
from sdft.runs.terminal import describe_error


class ClipFeatureExtractor(FeatureExtractor):
    """`name` is tiny-clip (embedded), a folder in open_clip's layout, or an open_clip model with a `pretrained` tag or file."""

    def __init__(self, name: str, pretrained: str | None = None, device: str = "cpu", batch_size: int = 64):
        import open_clip

        super().__init__(device, batch_size)
        folder = TINY_CLIP if name == "tiny-clip" else Path(name).expanduser()
        full_name = f"local-dir:{folder}" if folder.is_dir() else name
        if full_name == name and name not in open_clip.list_models():
            raise ValueError(
                f"metrics.clip={name}: no such folder or open_clip model; "
                "use tiny-clip (embedded), or for example ViT-L-14-quickgelu"
            )
        try:
            if is_offline() and full_name == name:
                check_offline_weights(name, pretrained)
            model, _, self.transform = open_clip.create_model_and_transforms(
                full_name, pretrained=pretrained, weights_only=True
            )
        except UnpicklingError:
            raise ValueError(f"metrics.clip={name}: not loaded: the weight file contains more than tensors") from None
        except (OSError, RuntimeError) as error:
            reason = describe_error(error)
            raise ScorerUnavailableError(
                f"metrics.clip={name}: cannot load its weights ({reason}); "
                "download them once with network access, or set metrics.pretrained=FILE"
            ) from None
        self.model, self.tokenizer = model.eval(), open_clip.get_tokenizer(full_name)
        self.name = name

    @torch.no_grad()
    def forward_batch(self, images: list[Image.Image]) -> Tensor:
        pixels = torch.stack([self.transform(image) for image in images])
        return self.move_to_device().encode_image(pixels.to(self.device)).cpu()

    @torch.no_grad()
    def embed_texts(self, captions: list[str]) -> Tensor:
        """Unit features `[captions, width]`."""
        tokens = (self.tokenizer(batch) for batch in split_batches(captions, self.batch_size))
        return torch.cat([self.move_to_device().encode_text(t.to(self.device), normalize=True).cpu() for t in tokens])


def check_offline_weights(name: str, pretrained: str | None) -> None:
    """Raise `OSError` for weights that open_clip would download from an address outside the hub."""
    import open_clip

    source = open_clip.get_pretrained_cfg(name, pretrained or "")
    file = Path("~/.cache/clip").expanduser() / source.get("url", "").rsplit("/", 1)[-1]  # open_clip's folder
    if source.get("url") and not source.get("hf_hub") and not file.is_file():
        raise OSError(f"{file.name} not found with HF_HUB_OFFLINE=1")

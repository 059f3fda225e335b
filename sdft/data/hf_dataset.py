"""Captioned pictures of a dataset on the hub, or of any folder or file that `datasets` loads."""

from dataclasses import dataclass

from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.data.images import to_upright_rgb
from sdft.data.metadata_tables import parse_captions as told


@dataclass
class HuggingFaceDataset(ImageDataset):
    """`name` and `config` are what `datasets.load_dataset` takes; `limit` keeps the first pictures alone."""

    name: str
    config: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "text"
    caption: str | None = None
    background: str = "white"
    limit: int | None = None

    def __post_init__(self):
        try:
            import datasets
        except ModuleNotFoundError:
            raise ValueError("data=hub needs a package that is not installed: pip install datasets") from None
        datasets.disable_progress_bars()
        try:
            rows = datasets.load_dataset(self.name, self.config, split=self.split)
        except Exception as error:  # of many kinds, all the user's to mend
            raise ValueError(f"data.name={self.name}: {str(error).strip().splitlines()[0]}") from None
        for key in ("image_column", "caption_column"):
            needed = key == "image_column" or not self.caption
            if needed and getattr(self, key) not in rows.column_names:
                raise ValueError(f"data.{key}={getattr(self, key)}: the dataset has {', '.join(rows.column_names)}")
        self.rows = rows.select(range(min(self.limit, len(rows)))) if self.limit else rows
        column = self.rows[self.caption_column] if self.caption_column in rows.column_names else [None] * len(self.rows)
        self.texts = [told(value) or ([self.caption] if self.caption else []) for value in column]
        if bare := [number for number, texts in enumerate(self.texts) if not texts]:
            raise ValueError(
                f"data.name={self.name}: no caption in row {bare[0]} and {len(bare) - 1} more; give data.caption="
            )

    def __len__(self):
        return len(self.rows)

    def captions(self) -> list[str]:
        return [texts[0] for texts in self.texts]

    def all_captions(self) -> list[list[str]]:
        return self.texts

    def __getitem__(self, index: int) -> CaptionedImage:
        image = to_upright_rgb(self.rows[index][self.image_column], self.background)
        return CaptionedImage(image, self.texts[index][0], f"{self.name} row {index}")

    def describe(self) -> str:
        return f"{self.name} {self.split}: {len(self)} pictures"

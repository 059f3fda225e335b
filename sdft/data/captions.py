"""Captions of images: from text files or a table, or one for all."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from sdft.data.folder_listing import FolderListing, get_stem, normalize_name
from sdft.data.metadata_tables import METADATA_FILES, read_metadata_table
from sdft.data.prompts import MAX_CAPTION_CHARS, read_text

CAPTION_LINES = ("first", "random", "join", "all")
TEXT_FILES = "captions from text files"
LATER_LINES = "caption lines after the first; data.caption_lines=random, all or join uses them"
EMPTY_CAPTIONS = "empty captions"
REPLACED_TEXTS = "captions of images that the table captions"
REPLACED_BY_OPTION = "files with captions; data.caption replaces them, data.default_caption would not"


@dataclass
class CaptionReader:
    """Captions of the images of a folder and their source. Errors and passed-over captions are added to the listing.

    `lines` says which lines of a text file are captions: the first, each (random, all), or all of them joined.
    """

    listing: FolderListing
    lines: str
    image_column: str
    caption_column: str
    captions: dict[Path, tuple[list[str], str]] = field(default_factory=dict)

    def read(self) -> dict[Path, tuple[list[str], str]]:
        tables = self.listing.tables
        if len(tables) > 1:
            names = " and ".join(sorted((file.name for file in tables), key=METADATA_FILES.index))
            self.listing.errors.append(f"{self.listing.root}: {names}; keep one of them")
        elif tables:
            self.read_table(tables[0])
        for name, path in self.listing.images.items():
            if text := self.listing.texts.get(get_stem(name)):
                if path in self.captions:
                    self.listing.inventory.add_unused(REPLACED_TEXTS, self.listing.format_name(text))
                else:
                    self.read_text_file(text, path)
        return self.captions

    def read_table(self, table: Path) -> None:
        rows, errors = read_metadata_table(table, self.image_column, self.caption_column)
        self.listing.errors += errors
        captions = defaultdict(list)
        for number, name, row_captions in rows:
            normal = normalize_name(Path(name))
            if (path := self.listing.images.get(normal)) is not None:
                captions[path] += row_captions  # an image may have several rows
                if not row_captions:
                    self.listing.inventory.add_unused(EMPTY_CAPTIONS, f"{table.name}:{number}")
            elif normal not in self.listing.unread_images:
                self.listing.errors.append(f"{table}:{number}: no image {name[:100]!r} in this folder")
        for path, texts in captions.items():
            self.captions[path] = list(dict.fromkeys(texts)), f"captions from {table.name}"

    def read_text_file(self, file: Path, image: Path) -> None:
        try:
            lines = read_caption_lines(file)
        except (ValueError, OSError) as error:
            self.listing.errors.append(str(error))
            return
        name = self.listing.format_name(file)
        if not lines:
            self.listing.inventory.add_unused(EMPTY_CAPTIONS, name)
        elif self.lines == "first" and len(lines) > 1:
            self.listing.inventory.add_unused(LATER_LINES, f"{name} ({len(lines) - 1} more)")
        texts = {"first": lines[:1], "join": [" ".join(lines)] if lines else []}.get(self.lines, lines)
        self.captions[image] = list(dict.fromkeys(texts)), TEXT_FILES


def read_caption_lines(file: Path) -> list[str]:
    """Return the non-empty lines; raises `ValueError` for null bytes."""
    text = read_text(file)
    if "\0" in text:
        raise ValueError(f"{file}: contains null bytes; save it as text")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(len(line) > MAX_CAPTION_CHARS for line in lines):
        raise ValueError(f"{file}: a caption of more than {MAX_CAPTION_CHARS} characters; shorten it")
    return lines


def choose_captions(
    own: tuple[list[str], str], caption: str | None, default_caption: str | None
) -> tuple[list[str], str]:
    """Captions of an image and their source: `caption` replaces its own ones, `default_caption` stands in for them."""
    if caption:
        return [caption], "data.caption"
    if not own[0] and default_caption:
        return [default_caption], "data.default_caption"
    return own

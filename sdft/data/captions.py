"""Captions of images: from text files or a table, or one for all."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sdft.data.folder_listing import FolderListing, get_stem, normalize_name
from sdft.data.metadata_tables import METADATA_FILES, read_metadata_table
from sdft.data.prompts import MAX_CAPTION_CHARS, read_text
from sdft.runs.terminal import escape_unprintable

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
    captions: dict[str, list[str]] = field(default_factory=dict)  # of the table, by name of the image

    def read(self) -> Iterator[tuple[list[str], str]]:
        """Yield captions and source of each image of the listing; no captions if it has none."""
        tables, texts = self.listing.tables, self.listing.texts
        if len(tables) > 1:
            names = " and ".join(sorted(tables, key=METADATA_FILES.index))
            self.listing.errors.append(f"{self.listing.root}: {names}; keep one of them")
        elif tables:
            self.read_table(self.listing.root / tables[0])
        table_source = f"captions from {tables[0]}" if tables else ""
        for name in self.listing.images:
            text = texts.get(get_stem(name))
            if name in self.captions:
                yield list(dict.fromkeys(self.captions[name])), table_source
                if text:
                    self.listing.inventory.add_unused(REPLACED_TEXTS, escape_unprintable(text))
            else:
                yield (self.read_text_file(text) if text else []), TEXT_FILES
        texts.clear()  # many names, which are needed no more

    def read_table(self, table: Path) -> None:
        images, errors, unknown = self.listing.images, [], []
        for number, name, row_captions in read_metadata_table(table, self.image_column, self.caption_column, errors):
            normal = normalize_name(name)
            if normal not in images:
                normal = normalize_name(str(Path(name)))
            if normal in images:
                self.captions.setdefault(normal, []).extend(row_captions)  # an image may have several rows
                if not row_captions:
                    self.listing.inventory.add_unused(EMPTY_CAPTIONS, f"{table.name}:{number}")
            elif normal not in self.listing.unread_images:
                unknown.append(f"{table}:{number}: no image {name[:100]!r} in this folder")
        self.listing.errors += errors + unknown

    def read_text_file(self, path: str) -> list[str]:
        try:
            lines = read_caption_lines(self.listing.root / path)
        except (ValueError, OSError) as error:
            self.listing.errors.append(str(error))
            return []
        name = escape_unprintable(path)
        if not lines:
            self.listing.inventory.add_unused(EMPTY_CAPTIONS, name)
        elif self.lines == "first" and len(lines) > 1:
            self.listing.inventory.add_unused(LATER_LINES, f"{name} ({len(lines) - 1} more)")
        texts = {"first": lines[:1], "join": [" ".join(lines)] if lines else []}.get(self.lines, lines)
        return list(dict.fromkeys(texts))


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

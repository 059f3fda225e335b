"""Captioned images in a folder: `NAME.jpg` next to `NAME.txt`, a metadata table, or one caption for all images.

`NAME.mask.png` next to an image is its mask: white is trained on.
"""

import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor

from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.data.file_index import FileRecord, scan_files
from sdft.data.images import IMAGE_SUFFIXES, check_mask_size, decode_image, decode_mask
from sdft.data.metadata_tables import find_metadata_table, read_metadata_table
from sdft.data.prompts import read_text

MASK_SUFFIX = ".mask.png"
ERROR_POLICIES = ("stop", "skip")


@dataclass
class ImageFolder(ImageDataset):
    """Images below `path`, at any depth, are paired with captions by name. `caption` is for images that have none.

    `on_error=stop` raises a `ValueError` listing every unusable file; `skip` omits and reports these files.
    """

    path: str
    caption: str | None = None
    background: str = "white"
    image_column: str = "file_name"
    caption_column: str = "text"
    on_error: str = "stop"

    def __post_init__(self):
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(f"data.background={self.background}: give a colour such as white or #808080") from None
        if self.on_error not in ERROR_POLICIES:
            raise ValueError(f"data.on_error={self.on_error}: choose one of {', '.join(ERROR_POLICIES)}")
        self.root = Path(self.path).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"data.path={self.path}: no such folder")
        images, texts, masks = list_files(self.root)
        table = find_metadata_table(self.root)
        side_files = [*texts.values(), *masks.values(), *([table] if table else [])]
        if link_errors := [error for file in side_files if (error := find_symlink_error(file, self.root))]:
            raise ValueError(format_list(link_errors, "; "))
        if not images:
            raise ValueError(f"data.path={self.path}: no images; accepted files: {' '.join(IMAGE_SUFFIXES)}")
        captions, self.errors = self.collect_captions(images, texts)
        save_records = self.select_usable_files(images, captions, masks)
        if self.errors and self.on_error == "stop":
            raise ValueError(
                f"{format_list(self.errors, '; ', limit=50)}; fix them, or give data.on_error=skip to omit these files"
            )
        if not self.files:
            raise ValueError(f"data.path={self.path}: no usable image: {format_list(self.errors, '; ')}")
        save_records()

    def collect_captions(
        self, images: dict[str, Path], texts: dict[str, Path]
    ) -> tuple[dict[Path, list[str]], list[str]]:
        """Return the captions of each image, from the table or the text files, and the errors in them."""
        captions, errors, table = {}, [], find_metadata_table(self.root)
        rows = read_metadata_table(table, self.image_column, self.caption_column) if table else ()
        for number, name, row_captions in rows:
            if (path := images.get(normalize_name(Path(name)))) is None:
                errors.append(f"{table}:{number}: no image {name[:100]!r} in this folder")
            else:  # an image may have several rows
                captions[path] = list(dict.fromkeys([*captions.get(path, []), *row_captions]))
        for path in images.values():
            if path not in captions and (
                text := texts.get(normalize_name(path.relative_to(self.root).with_suffix("")))
            ):
                try:
                    captions[path] = read_first_line(text)
                except ValueError as error:
                    errors.append(str(error))
        return captions, errors

    def select_usable_files(
        self, images: dict[str, Path], captions: dict[Path, list[str]], masks: dict[str, Path]
    ) -> Callable[[], None]:
        """Set `files`, `records`, `texts` and `masks`, and extend `errors`. Returns the function that saves the scan."""
        link_errors = {file: error for file in images.values() if (error := find_symlink_error(file, self.root))}
        self.errors += link_errors.values()
        files = sorted(file for file in images.values() if file not in link_errors)
        usable, uncaptioned, stems = [], [], set()
        self.masks: dict[Path, Path] = {}
        records, save_records = scan_files([*files, *masks.values()], self.decode_file, self.root)
        self.mask_records = dict(zip(masks.values(), records[len(files) :], strict=True))
        for file, record in zip(files, records[: len(files)], strict=True):
            file_captions = captions.get(file) or ([self.caption] if self.caption else [])
            stem = normalize_name(file.relative_to(self.root).with_suffix(""))
            mask = masks.get(stem)
            stems.add(stem)
            error = record.error or (mask and find_mask_error(mask, self.mask_records[mask], record))
            if error:
                self.errors.append(error)
            elif not file_captions:
                uncaptioned.append(str(file.relative_to(self.root)))
            else:
                usable.append((file, record, file_captions))
                self.masks |= {file: mask} if mask else {}
        self.errors += [f"{masks[stem]}: a mask without its image" for stem in masks.keys() - stems]
        if uncaptioned:
            advice = 'write one into a .txt of the same name, or give data.caption="..." for all'
            self.errors.append(f"data.path={self.path}: no caption for {format_list(uncaptioned, limit=20)}; {advice}")
        self.files = [file for file, _, _ in usable]
        self.records = [record for _, record, _ in usable]
        self.texts = [file_captions for _, _, file_captions in usable]
        return save_records

    def decode_file(self, file: Path) -> Image.Image:
        """Decode an image or a mask."""
        return decode_mask(file) if file.name.lower().endswith(MASK_SUFFIX) else decode_image(file, self.background)

    def __len__(self):
        return len(self.files)

    def captions(self) -> list[str]:
        return [texts[0] for texts in self.texts]

    def all_captions(self) -> list[list[str]]:
        return self.texts

    def sizes(self) -> list[tuple[int, int]]:
        return [(record.width, record.height) for record in self.records]

    def digest(self, index: int) -> str:
        mask = self.masks.get(self.files[index])
        return f"{self.records[index].digest} {self.background} {self.mask_records[mask].digest if mask else ''}"

    def file_records(self) -> dict[str, FileRecord]:
        names = [str(file.relative_to(self.root)) for file in self.files]
        return dict(zip(names, self.records, strict=True))

    def skipped_files(self) -> list[str]:
        return self.errors

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.load_image(index, None)

    def load_image(self, index: int, size: tuple[int, int] | None) -> CaptionedImage:
        file = self.files[index]
        image, mask = decode_image(file, self.background, size), self.masks.get(file)
        return CaptionedImage(image, self.texts[index][0], str(file), mask and self.load_mask(index, mask))

    def load_mask(self, index: int, path: Path) -> Image.Image:
        mask = decode_mask(path)
        record = self.records[index]
        check_mask_size(path, mask.size, (record.width, record.height))
        return mask

    def describe(self) -> str:
        masked = f", {len(self.masks)} with masks" if self.masks else ""
        skipped = f", {len(self.errors)} errors skipped" if self.errors else ""
        return f"{self.path}: {len(self)} images{masked}{skipped}"


def list_files(root: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path]]:
    """Return images by name, and text files and masks by the stem of their image; names are normalised, relative to `root`."""
    images, texts, masks = {}, {}, {}
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path, lower = Path(directory, name), name.lower()
            relative = path.relative_to(root)
            if name.startswith("."):
                continue
            if lower.endswith(MASK_SUFFIX):
                masks[normalize_name(relative)[: -len(MASK_SUFFIX)]] = path
            elif lower.endswith(IMAGE_SUFFIXES):
                images[normalize_name(relative)] = path
            elif lower.endswith(".txt"):
                texts[normalize_name(relative)[: -len(".txt")]] = path
    return images, texts, masks


def normalize_name(relative: Path) -> str:
    """Return the path in Unicode NFC: file systems may store an accent as one character or as two."""
    return unicodedata.normalize("NFC", relative.as_posix())


def find_symlink_error(file: Path, root: Path) -> str | None:
    if file.is_symlink() and not file.resolve().is_relative_to(root.resolve()):
        return f"{file}: a symbolic link that points outside the folder"
    return None


def find_mask_error(path: Path, mask: FileRecord, image: FileRecord) -> str | None:
    """Why a mask cannot be used for its image."""
    if mask.error:
        return mask.error
    try:
        check_mask_size(path, (mask.width, mask.height), (image.width, image.height))
    except ValueError as error:
        return str(error)
    return None


def read_first_line(file: Path) -> list[str]:
    """Return the first non-empty line as a list of at most one caption; raises `ValueError` for null bytes."""
    text = read_text(file)
    if "\0" in text:
        raise ValueError(f"{file}: contains null bytes; save it as text")
    return [line.strip() for line in text.splitlines() if line.strip()][:1]


def format_list(names: list[str], separator: str = ", ", limit: int = 5) -> str:
    """Join the first `limit` names, and say how many more there are."""
    more = f"{separator}and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more

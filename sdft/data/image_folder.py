"""Captioned images in a folder: `NAME.jpg` next to `NAME.txt`, a metadata table, or one caption for all images.

`NAME.mask.png` next to an image is its mask: white is trained on.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from sdft.data.captions import CAPTION_LINES, REPLACED_BY_OPTION, CaptionReader, choose_captions
from sdft.data.compact_lists import PathList, TextLists
from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.data.file_index import FileRecord, check_digest, is_mask, scan_files
from sdft.data.folder_listing import FolderListing, get_stem
from sdft.data.image_formats import IMAGE_SUFFIXES
from sdft.data.images import DECODER_VERSION, check_mask_size, decode_image, decode_mask, describe_notes
from sdft.data.inventory import Inventory, format_group, format_list
from sdft.runs.terminal import is_unicode

ERROR_POLICIES = ("stop", "skip")
VERIFY_MODES = ("changed", "full")


@dataclass
class ImageFolder(ImageDataset):
    """Images below `path`, at any depth, are paired with captions by name.

    `caption` is the caption of all images, `default_caption` of those that have none. `caption_lines` says which lines of
    a caption file are used: the first, one drawn for each sample (random), each in turn, one per epoch (all), or all of
    them joined to one (join). `on_error=stop` raises a `ValueError` listing every unusable file; `skip` omits and reports
    these files. `follow_links` reads what symbolic links point to, outside the folder too. `verify=full` hashes every file
    again; `changed` only those whose inode, size or times are new.
    """

    path: str
    caption: str | None = None
    default_caption: str | None = None
    caption_lines: str = "first"
    background: str = "white"
    image_column: str = "file_name"
    caption_column: str = "text"
    on_error: str = "stop"
    follow_links: bool = False
    verify: str = "changed"

    def __post_init__(self):
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(f"data.background={self.background}: give a colour such as white or #808080") from None
        choices_by_key = {"on_error": ERROR_POLICIES, "caption_lines": CAPTION_LINES, "verify": VERIFY_MODES}
        for key, choices in choices_by_key.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"data.{key}={getattr(self, key)}: choose one of {', '.join(choices)}")
        self.root = Path(self.path).expanduser()
        if not is_unicode(str(self.root)):
            raise ValueError(f"data.path={self.path}: the name is not UTF-8; rename the folder")
        if not self.root.is_dir():
            raise ValueError(f"data.path={self.path}: no such folder")
        listing = FolderListing(self.root, self.follow_links)
        self.errors, self.listed = listing.errors, listing.inventory
        captions = self.read_captions(listing)
        if not listing.images and not self.errors:
            accepted = f"no images; accepted files: {' '.join(IMAGE_SUFFIXES)}"
            raise ValueError(f"data.path={self.path}: {'; '.join([accepted, *self.list_unused()])}")
        self.select_usable_files(listing, captions)
        if self.errors and self.on_error == "stop":
            raise ValueError(
                f"{format_list(self.errors, '; ', limit=50)}; fix them, or give data.on_error=skip to omit these files"
            )
        if not self.files:
            raise ValueError(f"data.path={self.path}: no usable image: {format_list(self.errors, '; ')}")

    def read_captions(self, listing: FolderListing) -> dict[Path, tuple[list[str], str]]:
        """Captions and their source for each image that has its own; none with one caption for all."""
        if not self.caption:
            return CaptionReader(listing, self.caption_lines, self.image_column, self.caption_column).read()
        for file in [*listing.texts.values(), *listing.tables]:
            listing.inventory.add_unused(REPLACED_BY_OPTION, listing.format_name(file))
        return {}

    def select_usable_files(self, listing: FolderListing, captions: dict[Path, tuple[list[str], str]]) -> None:
        """Set `files`, `records`, `texts` and `masks`, and extend `errors`."""
        masks, files = listing.masks, {path: name for name, path in listing.images.items()}
        usable, uncaptioned = [], []
        scanned = [*sorted(files), *masks.values()]
        records = scan_files(scanned, self.decode_file, self.root, self.verify == "full")
        mask_numbers = {mask: number for number, mask in enumerate(masks.values(), len(files))}
        for number, file in enumerate(scanned[: len(files)]):
            record = records[number]
            texts, source = choose_captions(captions.get(file, ([], "")), self.caption, self.default_caption)
            mask = masks.get(get_stem(files[file]))
            error = record.error or (mask and find_mask_error(mask, records[mask_numbers[mask]], record))
            if error:
                self.errors.append(error)
            elif not texts:
                uncaptioned.append(listing.format_name(file))
            else:
                usable.append((file, number, texts, mask))
                listing.inventory.count_used(source)
                for note in describe_notes(record.notes):
                    listing.inventory.add_note(note, listing.format_name(file))
        stems = set(map(get_stem, files.values()))
        self.errors += [f"{path}: a mask without its image" for stem, path in masks.items() if stem not in stems]
        if uncaptioned:
            advice = (
                "write one into a .txt of the same name, or give data.default_caption for these, data.caption for all"
            )
            parts = [f"data.path={self.path}: no caption for {format_list(uncaptioned, limit=20)}", *self.list_unused()]
            self.errors.append("; ".join([*parts, advice]))
        self.files = PathList(self.root, (file for file, *_ in usable))
        self.records = records.select(number for _, number, *_ in usable)
        self.texts = TextLists(texts for *_, texts, _ in usable)
        masked = [mask for *_, mask in usable if mask]
        self.masks, self.mask_records = PathList(self.root, masked), records.select(map(mask_numbers.get, masked))
        self.masked_indices = np.flatnonzero([mask is not None for *_, mask in usable])

    def find_mask(self, index: int) -> tuple[Path, str] | None:
        """File and digest of the mask of an image, if it has one."""
        number = int(np.searchsorted(self.masked_indices, index))
        if number == len(self.masks) or self.masked_indices[number] != index:
            return None
        return self.masks[number], self.mask_records.get_digest(number)

    def list_unused(self) -> list[str]:
        return [f"not used: {format_group(reason, names)}" for reason, names in self.listed.unused.items()]

    def decode_file(self, file: Path) -> Image.Image:
        """Decode an image or a mask."""
        return decode_mask(file) if is_mask(file.name) else decode_image(file, self.background)

    def __len__(self):
        return len(self.files)

    def captions(self) -> list[str]:
        return [texts[0] for texts in self.texts]

    def all_captions(self) -> list[list[str]]:
        return self.texts

    def sizes(self) -> list[tuple[int, int]]:
        return self.records.sizes()

    def digest(self, index: int) -> str:
        mask = self.find_mask(index)
        return f"{self.records.get_digest(index)} {self.background} {mask[1] if mask else ''} {DECODER_VERSION}"

    def image_names(self) -> list[str]:
        return [name for [name] in self.files.names]

    def file_records(self) -> dict[str, FileRecord]:
        return {name: self.records[index] for index, name in enumerate(self.image_names())}

    def check_content(self, index: int) -> None:
        check_digest(self.files[index], self.records.get_digest(index))
        if mask := self.find_mask(index):
            check_digest(*mask)

    def skipped_files(self) -> list[str]:
        return self.errors

    def inventory(self) -> Inventory:
        return self.listed

    @property
    def cycles_captions(self) -> bool:
        return self.caption_lines == "all"

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.load_image(index, None)

    def load_image(self, index: int, size: tuple[int, int] | None) -> CaptionedImage:
        file = self.files[index]
        image, mask = decode_image(file, self.background, size), self.find_mask(index)
        return CaptionedImage(image, self.texts[index][0], str(file), mask and self.load_mask(index, mask[0]))

    def load_mask(self, index: int, path: Path) -> Image.Image:
        mask = decode_mask(path)
        record = self.records[index]
        check_mask_size(path, mask.size, (record.width, record.height))
        return mask

    def describe(self) -> str:
        masked = f", {len(self.masks)} with masks" if self.masks else ""
        skipped = f", {len(self.errors)} errors skipped" if self.errors else ""
        return f"{self.path}: {len(self)} images{masked}{skipped}"


def find_mask_error(path: Path, mask: FileRecord, image: FileRecord) -> str | None:
    """Why a mask cannot be used for its image."""
    if mask.error:
        return mask.error
    try:
        check_mask_size(path, (mask.width, mask.height), (image.width, image.height))
    except ValueError as error:
        return str(error)
    return None

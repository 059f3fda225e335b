"""Captioned images in a folder: `NAME.jpg` next to `NAME.txt`, a metadata table, or one caption for all images.

`NAME.mask.png` next to an image is its mask: white is trained on.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from sdft.data.captions import CAPTION_LINES, REPLACED_BY_OPTION, CaptionReader, choose_captions
from sdft.data.compact_lists import PathList, TextLists
from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.data.file_index import FileRecord, RecordTable, check_digest, is_mask, scan_files
from sdft.data.folder_listing import FolderListing, get_stem
from sdft.data.image_formats import IMAGE_SUFFIXES
from sdft.data.images import DECODER_VERSION, check_mask_size, decode_image, decode_mask, describe_notes
from sdft.data.inventory import Inventory, format_group, format_list
from sdft.runs.terminal import escape_unprintable, is_unicode

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
        sources: list[str] = []
        texts = TextLists(self.choose_captions(listing, sources))
        if not listing.images and not self.errors:
            accepted = f"no images; accepted files: {' '.join(IMAGE_SUFFIXES)}"
            raise ValueError(f"data.path={self.path}: {'; '.join([accepted, *self.list_unused()])}")
        self.select_usable_files(listing, texts, sources)
        if self.errors and self.on_error == "stop":
            raise ValueError(
                f"{format_list(self.errors, '; ', limit=50)}; fix them, or give data.on_error=skip to omit these files"
            )
        if not self.files:
            raise ValueError(f"data.path={self.path}: no usable image: {format_list(self.errors, '; ')}")

    def choose_captions(self, listing: FolderListing, sources: list[str]) -> Iterator[list[str]]:
        """Yield the captions of each image; append their source to `sources`."""
        reader = CaptionReader(listing, self.caption_lines, self.image_column, self.caption_column)
        if self.caption:
            for file in [*listing.texts.values(), *listing.tables]:
                listing.inventory.add_unused(REPLACED_BY_OPTION, escape_unprintable(file))
        for own in repeat(([], ""), len(listing.images)) if self.caption else reader.read():
            texts, source = choose_captions(own, self.caption, self.default_caption)
            sources.append(source)
            yield texts

    def select_usable_files(self, listing: FolderListing, captions: TextLists, sources: list[str]) -> None:
        """Set `files`, `records`, `texts` and `masks`, and extend `errors`."""
        masks, files = listing.masks, PathList(self.root, [*listing.images.values(), *listing.masks.values()])
        records = scan_files(files, self.decode_file, self.verify == "full")
        mask_numbers = dict(zip(masks, range(len(listing.images), len(files)), strict=True))
        usable, usable_masks, uncaptioned, notes = array("q"), {}, [], records.rows["notes"]
        for number, name in enumerate(listing.images):
            mask = mask_numbers.get(get_stem(name)) if masks else None
            error = records.errors.get(number)
            error = error or (mask and find_mask_error(files[mask], records[mask], records[number]))
            if error:
                self.errors.append(error)
            elif not captions[number]:
                uncaptioned.append(escape_unprintable(files.names[number]))
            else:
                if mask:
                    usable_masks[len(usable)] = mask
                usable.append(number)
                listing.inventory.count_used(sources[number])
                for note in describe_notes(notes[number]) if notes[number] else ():
                    listing.inventory.add_note(note, escape_unprintable(files.names[number]))
        stems = set(map(get_stem, listing.images)) if masks else set()
        self.errors += [
            f"{self.root / path}: a mask without its image" for stem, path in masks.items() if stem not in stems
        ]
        if uncaptioned:
            advice = (
                "write one into a .txt of the same name, or give data.default_caption for these, data.caption for all"
            )
            parts = [f"data.path={self.path}: no caption for {format_list(uncaptioned, limit=20)}", *self.list_unused()]
            self.errors.append("; ".join([*parts, advice]))
        chosen_masks = array("q", usable_masks.values())
        self.masks, self.mask_records = files.select(chosen_masks), records.select(chosen_masks)
        if len(usable) < len(files):
            files, records, captions = files.select(usable), records.select(usable), captions.select(usable)
        self.files, self.records, self.texts = files, records, captions
        self.records.drop_identities()
        self.masked_indices = np.array(array("q", usable_masks))

    def find_mask(self, index: int) -> tuple[Path, str] | None:
        """File and digest of the mask of an image, if it has one."""
        if not self.masks:
            return None
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
        return self.files.names

    def file_records(self) -> RecordTable:
        return RecordTable(self.records.rows, self.files.names)

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

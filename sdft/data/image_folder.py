"""Captioned pictures in a folder: `NAME.jpg` beside `NAME.txt`, or a table that lists them, or one caption for all.

`NAME.mask.png` beside a picture is its mask: white is what is learned.
"""

import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageColor

from sdft.data.dataset import CaptionedImage, ImageDataset
from sdft.data.file_index import FileRecord, scan_files
from sdft.data.images import IMAGE_SUFFIXES, decode_image, decode_mask
from sdft.data.metadata_tables import find_metadata_table, read_metadata_table
from sdft.data.prompts import read_text
from sdft.runs.hashing import hash_file

MASK_SUFFIX = ".mask.png"
ERROR_POLICIES = ("stop", "skip")


@dataclass
class ImageFolder(ImageDataset):
    """Pictures are paired with captions by name, below `path` at any depth. `caption` stands in for those that have none.

    `on_error=stop` refuses a folder in which anything cannot be used, and names all of it; `skip` leaves that out and says so.
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
        pictures, texts, masks = list_files(self.root)
        beside = [*texts.values(), *masks.values(), *([file] if (file := find_metadata_table(self.root)) else [])]
        if links := [fault for file in beside if (fault := find_symlink_error(file, self.root))]:
            raise ValueError(format_list(links, "; "))
        if not pictures:
            raise ValueError(f"data.path={self.path}: no pictures in it ({' '.join(IMAGE_SUFFIXES)})")
        captions, self.errors = self.collect_captions(pictures, texts)
        remember = self.select_usable_files(pictures, captions, masks)
        if self.errors and self.on_error == "stop":
            raise ValueError(
                f"{format_list(self.errors, '; ', most=50)}; mend them, or give data.on_error=skip to go on without"
            )
        if not self.files:
            raise ValueError(f"data.path={self.path}: nothing in it can be used: {format_list(self.errors, '; ')}")
        remember()

    def collect_captions(
        self, pictures: dict[str, Path], texts: dict[str, Path]
    ) -> tuple[dict[Path, list[str]], list[str]]:
        """The captions of each picture, from the table or the texts, and what is wrong with either."""
        captions, faults, file = {}, [], find_metadata_table(self.root)
        for number, name, told in read_metadata_table(file, self.image_column, self.caption_column) if file else ():
            if (path := pictures.get(normalize_name(Path(name)))) is None:
                faults.append(f"{file}:{number}: no picture {name[:100]!r} in this folder")
            else:  # rows of one picture are its captions
                captions[path] = list(dict.fromkeys([*captions.get(path, []), *told]))
        for path in pictures.values():
            if path not in captions and (
                text := texts.get(normalize_name(path.relative_to(self.root).with_suffix("")))
            ):
                try:
                    captions[path] = read_first_line(text)
                except ValueError as error:
                    faults.append(str(error))
        return captions, faults

    def select_usable_files(
        self, pictures: dict[str, Path], captions: dict[Path, list[str]], masks: dict[str, Path]
    ) -> Callable:
        """The files that can be used, with their facts, which what is returned remembers; what cannot joins the faults."""
        links = {file: fault for file in pictures.values() if (fault := find_symlink_error(file, self.root))}
        self.errors += links.values()
        files = sorted(file for file in pictures.values() if file not in links)
        kept, bare, used = [], [], set()
        self.masks: dict[Path, Path] = {}
        facts, remember = scan_files(files, self.decode_file, self.root)
        for file, fact in zip(files, facts, strict=True):
            told = captions.get(file) or ([self.caption] if self.caption else [])
            stem = normalize_name(file.relative_to(self.root).with_suffix(""))
            mask = masks.get(stem)
            used.add(stem)
            fault = fact.error or (mask and find_mask_error(mask, (fact.width, fact.height)))
            if fault:
                self.errors.append(fault)
            elif not told:
                bare.append(str(file.relative_to(self.root)))
            else:
                kept.append((file, fact, told))
                self.masks |= {file: mask} if mask else {}
        self.errors += [f"{masks[stem]}: a mask without its picture" for stem in masks.keys() - used]
        if bare:
            advice = 'write one into a .txt of the same name, or give all of them data.caption="..."'
            self.errors.append(f"data.path={self.path}: no caption for {format_list(bare, most=20)}; {advice}")
        self.files = [file for file, _, _ in kept]
        self.facts = [fact for _, fact, _ in kept]
        self.texts = [told for _, _, told in kept]
        return remember

    def decode_file(self, file: Path):
        return decode_image(file, self.background)

    def __len__(self):
        return len(self.files)

    def captions(self) -> list[str]:
        return [told[0] for told in self.texts]

    def all_captions(self) -> list[list[str]]:
        return self.texts

    def sizes(self) -> list[tuple[int, int]]:
        return [(fact.width, fact.height) for fact in self.facts]

    def digest(self, index: int) -> str:
        mask = self.masks.get(self.files[index])
        return f"{self.facts[index].digest} {self.background} {hash_file(mask) if mask else ''}"

    def file_records(self) -> dict[str, FileRecord]:
        return {str(file.relative_to(self.root)): fact for file, fact in zip(self.files, self.facts, strict=True)}

    def skipped_files(self) -> list[str]:
        return self.errors

    def __getitem__(self, index: int) -> CaptionedImage:
        return self.load_image(index, None)

    def load_image(self, index: int, size: tuple[int, int] | None) -> CaptionedImage:
        file = self.files[index]
        image, mask = decode_image(file, self.background, size), self.masks.get(file)
        whole = (self.facts[index].width, self.facts[index].height)
        return CaptionedImage(image, self.texts[index][0], str(file), mask and decode_mask(mask, whole))

    def describe(self) -> str:
        masked = f", {len(self.masks)} with masks" if self.masks else ""
        skipped = f", {len(self.errors)} faults skipped" if self.errors else ""
        return f"{self.path}: {len(self)} pictures{masked}{skipped}"


def list_files(root: Path) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path]]:
    """Pictures by their name, texts and masks by the name they go with; names are relative to `root` and normalised."""
    pictures, texts, masks = {}, {}, {}
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path, lower = Path(place, name), name.lower()
            relative = path.relative_to(root)
            if name.startswith("."):
                continue
            if lower.endswith(MASK_SUFFIX):
                masks[normalize_name(relative)[: -len(MASK_SUFFIX)]] = path
            elif lower.endswith(IMAGE_SUFFIXES):
                pictures[normalize_name(relative)] = path
            elif lower.endswith(".txt"):
                texts[normalize_name(relative)[: -len(".txt")]] = path
    return pictures, texts, masks


def normalize_name(relative: Path) -> str:
    """A name as people mean it: accents may be stored as one character or as two."""
    return unicodedata.normalize("NFC", relative.as_posix())


def find_symlink_error(file: Path, root: Path) -> str | None:
    if file.is_symlink() and not file.resolve().is_relative_to(root.resolve()):
        return f"{file}: a link that leads out of the folder"
    return None


def find_mask_error(mask: Path, size: tuple[int, int]) -> str | None:
    try:
        decode_mask(mask, size)
    except ValueError as error:
        return str(error)
    return None


def read_first_line(text: Path) -> list[str]:
    """The first line that says something."""
    told = read_text(text)
    if "\0" in told:
        raise ValueError(f"{text}: null bytes in it; save it as text")
    return [line.strip() for line in told.splitlines() if line.strip()][:1]


def format_list(names: list[str], separator: str = ", ", most: int = 5) -> str:
    """The first few, and how many more."""
    more = f"{separator}and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more

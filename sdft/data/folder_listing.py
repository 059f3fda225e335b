"""Files of a data folder: images, captions, masks and tables, errors, and everything else with the reason why it is not used."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sdft.data.compact_lists import group_equal, hash_all
from sdft.data.image_formats import EXTRA_SUFFIXES, IMAGE_SUFFIXES
from sdft.data.inventory import Inventory
from sdft.data.metadata_tables import METADATA_FILES
from sdft.runs.terminal import escape_unprintable, is_unicode

MASK_SUFFIX = ".mask.png"
OTHER_IMAGE_SUFFIXES = (  # also of camera raw files
    *(".psd", ".svg", ".ico", ".ppm", ".pgm", ".qoi", ".dds", ".exr", ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".nef"),
    *(".arw", ".orf", ".rw2", ".raf"),
)
OTHER_CAPTION_SUFFIXES = (".caption", ".captions", ".cap", ".tags", ".json", ".jsonl", ".csv", ".parquet")

HIDDEN = "hidden files and folders"
LINKED_FOLDERS = "linked folders; data.follow_links=true reads them"
REPEATED_FOLDERS = "linked folders whose content is read elsewhere"
OTHER_IMAGES = "images of formats that are not read; convert them to PNG"
OTHER_MASKS = f"masks of other names; rename them to NAME{MASK_SUFFIX}"
OTHER_TABLES = "tables in sub-folders; only a table directly in data.path is read"
OTHER_CAPTIONS = "files that may hold captions; captions are read from NAME.txt and metadata.jsonl, .csv or .parquet"
OTHER_FILES = "other files"
OTHER_FORM = "names that equal another one in upper and lower case or Unicode form; rename them"
SUFFIXED_CAPTIONS = "captions with the name NAME.SUFFIX.txt; rename them to NAME.txt"
OTHER_CASE_CAPTIONS = "captions that differ from their image in upper and lower case; rename them"
ORPHAN_CAPTIONS = "captions without an image of that name"
SHARED_STEM = "images that share one caption or mask, as their names differ in the suffix alone"
SIMILAR_NAMES = "image names that differ in upper and lower case alone; other systems keep one of them"


@dataclass
class FolderListing:
    """Images by name, in the order of the dataset, and text files and masks by the stem of their image.

    Names are normalised; paths are relative to `root`, and strings: `Path` interns every name, in a table that never shrinks.
    """

    root: Path
    follow_links: bool = False
    images: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    unread_images: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    inventory: Inventory = field(default_factory=Inventory)

    def __post_init__(self):
        for path in walk_files(self.root, self.follow_links, self.inventory, self.errors):
            if error := find_file_error(path, self.root, self.follow_links):
                self.errors.append(error)
            else:
                self.add(path)
        by_parts = sorted(self.images, key=lambda name: self.images[name].replace(os.sep, "\0"))
        if by_parts != list(self.images):
            self.images = {name: self.images[name] for name in by_parts}
        self.check_names()

    def add(self, path: str) -> None:
        """Sort one file by its name."""
        folder, base = os.path.split(path)
        name, lower = normalize_name(path), base.lower()
        if lower.endswith(MASK_SUFFIX):
            self.register(self.masks, name[: -len(MASK_SUFFIX)], path)
        elif lower.endswith(IMAGE_SUFFIXES):
            if get_stem(lower).endswith(".mask"):
                self.inventory.add_unused(OTHER_MASKS, escape_unprintable(path))
            else:
                self.register(self.images, name, path)
        elif lower.endswith(".txt"):
            self.register(self.texts, name[: -len(".txt")], path)
        elif not folder and base in METADATA_FILES:
            self.tables.append(path)
        elif lower.endswith((*EXTRA_SUFFIXES, *OTHER_IMAGE_SUFFIXES)):
            self.unread_images.add(name)
            package = EXTRA_SUFFIXES.get(lower.removeprefix(get_stem(lower)))
            reason = f"images that need a package: pip install {package}" if package else OTHER_IMAGES
            self.inventory.add_unused(reason, escape_unprintable(path))
        else:
            is_caption = lower.endswith(OTHER_CAPTION_SUFFIXES)
            reason = OTHER_TABLES if base in METADATA_FILES else OTHER_CAPTIONS if is_caption else OTHER_FILES
            self.inventory.add_unused(reason, escape_unprintable(path))

    def register(self, files: dict[str, str], name: str, path: str) -> None:
        if name in files:
            self.inventory.add_unused(OTHER_FORM, escape_unprintable(files[name]))
        files[name] = path

    def check_names(self) -> None:
        """Report captions without an image, and images whose names are almost equal."""
        paths, stems, texts = list(self.images.values()), hash_all(map(get_stem, self.images)), hash_all(self.texts)
        orphans = [stem for stem, is_used in zip(self.texts, np.isin(texts, stems), strict=True) if not is_used]
        folded = {get_stem(name).casefold() for name in self.images} if orphans else set()
        unread_stems = set(map(get_stem, self.unread_images))
        for stem in orphans:
            path = self.texts.pop(stem)
            if stem not in unread_stems:
                reason = OTHER_CASE_CAPTIONS if stem.casefold() in folded else ORPHAN_CAPTIONS
                reason = SUFFIXED_CAPTIONS if stem in self.images else reason
                self.inventory.add_unused(reason, escape_unprintable(path))
        for text, hashes in ((SHARED_STEM, stems), (SIMILAR_NAMES, hash_all(map(str.casefold, self.images)))):
            for group in group_equal(hashes):
                for index in group:
                    self.inventory.add_note(text, escape_unprintable(paths[index]))


def walk_files(root: Path, follow_links: bool, inventory: Inventory, errors: list[str]) -> Iterator[str]:
    """Yield the files that are not hidden, relative to `root`, by name. A folder behind links is read once, so loops end."""
    real_root = root.resolve()
    visited = {real_root}

    def report_unreadable(error: OSError) -> None:
        errors.append(f"{escape_unprintable(str(error.filename))}: {error.strerror}")

    def is_entered(folder: Path) -> bool:
        name = escape_unprintable(str(folder.relative_to(root)))
        if folder.name.startswith("."):
            inventory.add_unused(HIDDEN, f"{name}/")
            return False
        if folder.is_symlink() and not follow_links:
            inventory.add_unused(LINKED_FOLDERS, f"{name}/")
            return False
        if not follow_links:
            return True
        real = folder.resolve()
        if real in visited or (folder.is_symlink() and real.is_relative_to(real_root)):
            inventory.add_unused(REPEATED_FOLDERS, f"{name}/")
            return False
        visited.add(real)
        return True

    for directory, folders, names in os.walk(root, onerror=report_unreadable, followlinks=follow_links):
        folders[:] = [name for name in sorted(folders) if is_entered(Path(directory, name))]
        relative = "" if Path(directory) == root else os.path.relpath(directory, root)
        for name in sorted(names):
            path = os.path.join(relative, name)
            if name.startswith("."):
                inventory.add_unused(HIDDEN, escape_unprintable(path))
            else:
                yield path


def find_file_error(name: str, root: Path, follow_links: bool) -> str | None:
    """Why a file cannot be used, whatever its content."""
    path = os.path.join(root, name)
    is_link, error = os.path.islink(path), None
    if not is_unicode(path):
        error = "the name is not UTF-8; rename it"
    elif is_link and not os.path.exists(path):
        error = "a symbolic link to nothing"
    elif not os.path.isfile(path):
        error = "not a file that can be read"
    elif is_link and not follow_links and not Path(path).resolve().is_relative_to(root.resolve()):
        error = "a symbolic link that points outside the folder; data.follow_links=true reads it"
    return error and f"{escape_unprintable(str(root / name))}: {error}"


def normalize_name(path: str) -> str:
    """Return the path in Unicode NFC: file systems may store an accent as one character or as two."""
    return unicodedata.normalize("NFC", path.replace(os.sep, "/"))


def get_stem(name: str) -> str:
    return os.path.splitext(name)[0]

"""Files of a data folder: images, captions, masks and tables, errors, and everything else with the reason why it is not used."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
    """Images by name, text files and masks by the stem of their image; names are normalised, relative to `root`."""

    root: Path
    follow_links: bool = False
    images: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    unread_images: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    inventory: Inventory = field(default_factory=Inventory)

    def __post_init__(self):
        for path in walk_files(self.root, self.follow_links, self.inventory, self.errors):
            if error := find_file_error(path, self.root, self.follow_links):
                self.errors.append(error)
            else:
                self.add(path)
        self.check_names()

    def add(self, path: Path) -> None:
        """Sort one file by its name."""
        name, lower = normalize_name(path.relative_to(self.root)), path.name.lower()
        if lower.endswith(MASK_SUFFIX):
            self.register(self.masks, name[: -len(MASK_SUFFIX)], path)
        elif lower.endswith(IMAGE_SUFFIXES):
            if path.stem.lower().endswith(".mask"):
                self.inventory.add_unused(OTHER_MASKS, self.format_name(path))
            else:
                self.register(self.images, name, path)
        elif lower.endswith(".txt"):
            self.register(self.texts, name[: -len(".txt")], path)
        elif path.parent == self.root and path.name in METADATA_FILES:
            self.tables.append(path)
        elif lower.endswith((*EXTRA_SUFFIXES, *OTHER_IMAGE_SUFFIXES)):
            self.unread_images.add(name)
            package = EXTRA_SUFFIXES.get(path.suffix.lower())
            reason = f"images that need a package: pip install {package}" if package else OTHER_IMAGES
            self.inventory.add_unused(reason, self.format_name(path))
        else:
            is_caption = lower.endswith(OTHER_CAPTION_SUFFIXES)
            reason = OTHER_TABLES if path.name in METADATA_FILES else OTHER_CAPTIONS if is_caption else OTHER_FILES
            self.inventory.add_unused(reason, self.format_name(path))

    def register(self, files: dict[str, Path], name: str, path: Path) -> None:
        if name in files:
            self.inventory.add_unused(OTHER_FORM, self.format_name(files[name]))
        files[name] = path

    def check_names(self) -> None:
        """Report captions without an image, and images whose names are almost equal."""
        by_stem, by_case = defaultdict(list), defaultdict(list)
        for name, path in self.images.items():
            by_stem[get_stem(name)].append(self.format_name(path))
            by_case[name.casefold()].append(self.format_name(path))
        folded = {stem.casefold() for stem in by_stem}
        unread_stems = {get_stem(name) for name in self.unread_images}
        for stem in [stem for stem in self.texts if stem not in by_stem]:
            path = self.texts.pop(stem)
            if stem not in unread_stems:
                reason = OTHER_CASE_CAPTIONS if stem.casefold() in folded else ORPHAN_CAPTIONS
                reason = SUFFIXED_CAPTIONS if stem in self.images else reason
                self.inventory.add_unused(reason, self.format_name(path))
        for text, groups in ((SHARED_STEM, by_stem), (SIMILAR_NAMES, by_case)):
            for names in groups.values():
                if len(names) > 1:
                    self.inventory.notes.setdefault(text, []).extend(names)

    def format_name(self, path: Path) -> str:
        return escape_unprintable(str(path.relative_to(self.root)))


def walk_files(root: Path, follow_links: bool, inventory: Inventory, errors: list[str]) -> Iterator[Path]:
    """Yield the files that are not hidden, in order of their names. A folder behind links is read once, so loops end."""
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
        for name in sorted(names):
            path = Path(directory, name)
            if name.startswith("."):
                inventory.add_unused(HIDDEN, escape_unprintable(str(path.relative_to(root))))
            else:
                yield path


def find_file_error(path: Path, root: Path, follow_links: bool) -> str | None:
    """Why a file cannot be used, whatever its content."""
    name = escape_unprintable(str(path))
    if not is_unicode(str(path)):
        return f"{name}: the name is not UTF-8; rename it"
    if path.is_symlink() and not path.exists():
        return f"{name}: a symbolic link to nothing"
    if not path.is_file():
        return f"{name}: not a file that can be read"
    if path.is_symlink() and not follow_links and not path.resolve().is_relative_to(root.resolve()):
        return f"{name}: a symbolic link that points outside the folder; data.follow_links=true reads it"
    return None


def normalize_name(relative: Path) -> str:
    """Return the path in Unicode NFC: file systems may store an accent as one character or as two."""
    return unicodedata.normalize("NFC", relative.as_posix())


def get_stem(name: str) -> str:
    return name[: -len(Path(name).suffix)]

"""What is in a data set, and what in it a person should look at before a run."""

import json
import re
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from PIL import Image

from sdft.data.dataset import ImageDataset
from sdft.data.file_index import FileRecord
from sdft.data.images import pixels_to_image, resize_and_crop

MAX_HASH_DISTANCE = 3  # bits of 64 in which near duplicates may differ
HASH_BANDS = MAX_HASH_DISTANCE + 1  # of which one must then be equal
MAX_FREQUENT_WORDS, MAX_FREQUENT_TAGS = 12, 100
MAX_TILES, TILE_HEIGHT = 60, 96  # of the contact sheet: how many, and how high


@dataclass
class DatasetReport:
    """`stats` for a machine, `lines` for a terminal, `warnings` for whoever ignores both."""

    stats: dict
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        (folder / "data.json").write_text(
            json.dumps({**self.stats, "warnings": self.warnings}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def build_dataset_report(
    source: ImageDataset, sizes: list[tuple[int, int]], steps_per_epoch: float, tokenizer, tokens: int
) -> DatasetReport:
    """`sizes` is what each picture is brought to; `tokens` is the longest prompt that the text encoder takes."""
    whole, captions = source.sizes(), [text for texts in source.all_captions() for text in texts]
    lengths = [len(ids) for ids in tokenizer(captions, truncation=False, verbose=False).input_ids]
    words = Counter(word for text in captions for word in re.findall(r"\w[\w'-]{2,}", text.lower()))
    tags = Counter(tag for text in captions for part in text.split(",") if (tag := " ".join(part.split())))
    enlarged = [max(w / a, h / b) for (w, h), (a, b) in zip(sizes, whole, strict=True)]
    stats = {
        "pictures": len(source),
        "captions": len(captions),
        "unique captions": len(set(captions)),
        "sides": [min(min(size) for size in whole), max(max(size) for size in whole)],
        "buckets": {f"{w}x{h}": n for (w, h), n in sorted(Counter(sizes).items())},
        "steps per epoch": round(steps_per_epoch, 2),
        "longest caption": {"tokens": max(lengths), "text": captions[lengths.index(max(lengths))]},
        "truncated captions": sum(length > tokens for length in lengths),
        "frequent words": dict(words.most_common(MAX_FREQUENT_WORDS)),
        "frequent tags": dict(tags.most_common(MAX_FREQUENT_TAGS)),
        "enlarged": sum(factor > 1 for factor in enlarged),
        "left out": list(source.skipped_files()),
        "bucket of": {name: f"{w}x{h}" for name, (w, h) in zip(source.file_records(), sizes, strict=False)},
        **find_duplicates(source.file_records()),
    }
    return DatasetReport(
        stats, list(format_summary(stats, statistics.median(lengths))), list(format_warnings(stats, enlarged, tokens))
    )


def format_summary(stats: dict, middle: float):
    buckets = stats["buckets"]
    shown = ", ".join(f"{size} ({n})" for size, n in sorted(buckets.items(), key=lambda item: -item[1])[:6])
    more = f" and {len(buckets) - 6} more" if len(buckets) > 6 else ""
    low, high = stats["sides"]
    sides = f"{low} to {high}" if low < high else f"{low}"
    yield f"data     {stats['pictures']} pictures with sides of {sides} px → {shown}{more}"
    yield (
        f"text     {stats['captions']} captions, {stats['unique captions']} different, of {middle:g} tokens; "
        f"most often: {', '.join(stats['frequent words'])}"
    )


def format_warnings(stats: dict, enlarged: list[float], tokens: int):
    if cut := stats["truncated captions"]:
        longest = stats["longest caption"]["tokens"]
        yield f"{cut} of {stats['captions']} captions are cut at {tokens} tokens; the longest has {longest}"
    if stats["enlarged"]:
        yield f"{stats['enlarged']} pictures are smaller than what they are brought to, {max(enlarged):.1f} times at most"
    for kind in ("equal", "alike"):
        if groups := stats[f"{kind} pictures"]:
            count = f" and {len(groups) - 1} more times" if len(groups) > 1 else ""
            yield f"pictures are {kind}: {', '.join(groups[0][:5])}{count}"
    for fault in stats["left out"]:
        yield f"left out: {fault}"


def find_duplicates(stats: dict[str, FileRecord]) -> dict[str, list[list[str]]]:
    """Groups of names: files with the same bytes, and pictures whose difference hashes are within `ALIKE` bits."""
    equal, bands = defaultdict(list), defaultdict(list)
    for name, fact in stats.items():
        equal[fact.digest].append(name)
    firsts = {names[0]: stats[names[0]].dhash for names in equal.values()}
    width = 64 // HASH_BANDS
    for name, look in firsts.items():
        for band in range(HASH_BANDS):
            bands[band, look >> (band * width) & (1 << width) - 1].append(name)
    pairs = set()
    for names in bands.values():
        if len(names) < 200:  # a band that so many share tells nothing, as plain skies do
            pairs |= {
                (a, b) for a, b in combinations(names, 2) if (firsts[a] ^ firsts[b]).bit_count() <= MAX_HASH_DISTANCE
            }
    return {
        "equal pictures": [names for names in equal.values() if len(names) > 1],
        "alike pictures": [list(pair) for pair in sorted(pairs)],
    }


def draw_contact_sheet(source: ImageDataset, sizes: list[tuple[int, int]]) -> Image.Image:
    """Pictures as they are trained on, some of each size, the most common size first."""
    by_size = defaultdict(list)
    for index, size in enumerate(sizes):
        by_size[size].append(index)
    share = max(1, MAX_TILES // len(by_size))
    tiles = []
    for size, indices in sorted(by_size.items(), key=lambda item: -len(item[1])):
        for index in indices[:: max(1, len(indices) // share)][:share]:
            high = (round(size[0] * TILE_HEIGHT / size[1]), TILE_HEIGHT)
            tiles.append(pixels_to_image(resize_and_crop(source.load_image(index, size).image, high)))
    return arrange_tiles(tiles[:MAX_TILES])


def arrange_tiles(tiles: list[Image.Image], width: int = 1200, gap: int = 4) -> Image.Image:
    """Tiles of one height, row after row, on white."""
    places, x, y = [], gap, gap
    for tile in tiles:
        if x + tile.width + gap > width and x > gap:
            x, y = gap, y + TILE_HEIGHT + gap
        places.append((x, y))
        x += tile.width + gap
    sheet = Image.new("RGB", (width, y + TILE_HEIGHT + gap), "white")
    for place, tile in zip(places, tiles, strict=True):
        sheet.paste(tile, place)
    return sheet

"""Dataset report: statistics, buckets, captions and duplicates to check before a run."""

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from sdft.data.dataset import ImageDataset
from sdft.data.file_index import FileRecord

MAX_HASH_DISTANCE = 3  # bits of 64 in which near-duplicates may differ
HASH_BANDS = MAX_HASH_DISTANCE + 1  # at least one band is then equal
MAX_BAND_IMAGES = 200  # larger bands, such as plain skies, are not compared
TOKENIZED_CAPTIONS = 1024  # at once
MAX_FREQUENT_WORDS, MAX_FREQUENT_TAGS = 12, 100


@dataclass
class DatasetReport:
    """`stats` for `data.json`, `lines` for the terminal, `warnings` for both."""

    stats: dict
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        (folder / "data.json").write_text(
            json.dumps({**self.stats, "warnings": self.warnings}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def build_dataset_report(
    source: ImageDataset, sizes: list[tuple[int, int]], steps_per_epoch: float, tokenizer, max_tokens: int
) -> DatasetReport:
    """`sizes` are the training sizes of the images; `max_tokens` is the longest prompt that the text encoder accepts."""
    original_sizes, captions = source.sizes(), [text for texts in source.all_captions() for text in texts]
    lengths = []
    for start in range(0, len(captions), TOKENIZED_CAPTIONS):
        block = captions[start : start + TOKENIZED_CAPTIONS]
        lengths += [len(ids) for ids in tokenizer(block, truncation=False, verbose=False).input_ids]
    words = Counter(term for text in captions for term in split_terms(text))
    tags = Counter(tag for text in captions for part in text.split(",") if (tag := " ".join(part.split())))
    upscales = [max(w / a, h / b) for (w, h), (a, b) in zip(sizes, original_sizes, strict=True)]
    records = source.file_records()
    stats = {
        "images": len(source),
        "captions": len(captions),
        "unique captions": len(set(captions)),
        "sides": [min(min(size) for size in original_sizes), max(max(size) for size in original_sizes)],
        "buckets": {f"{w}x{h}": n for (w, h), n in sorted(Counter(sizes).items())},
        "steps per epoch": round(steps_per_epoch, 2),
        "longest caption": {"tokens": max(lengths), "text": captions[lengths.index(max(lengths))]},
        "truncated captions": sum(length > max_tokens for length in lengths),
        "frequent words": dict(words.most_common(MAX_FREQUENT_WORDS)),
        "words of every caption": find_shared_terms(captions),
        "frequent tags": dict(tags.most_common(MAX_FREQUENT_TAGS)),
        "upscaled images": sum(factor > 1 for factor in upscales),
        "skipped": list(source.skipped_files()),
        **source.inventory().to_json(),
        "image buckets": {name: f"{w}x{h}" for name, (w, h) in zip(records, sizes, strict=False)},
        **find_duplicates(records),
    }
    return DatasetReport(
        stats,
        [*format_summary(stats, statistics.median(lengths)), *source.inventory().format_lines()],
        list(format_warnings(stats, upscales, max_tokens)),
    )


def split_terms(text: str) -> list[str]:
    """Words of at least three letters, in lower case."""
    return re.findall(r"\w[\w'-]{2,}", text.lower())


def find_shared_terms(captions: list[str]) -> list[str]:
    """The words that every caption contains, in the order of the first one."""
    shared = list(dict.fromkeys(split_terms(captions[0]))) if captions else []
    for text in captions:
        if not shared:
            break
        terms = set(split_terms(text))
        shared = [term for term in shared if term in terms]
    return shared


def format_summary(stats: dict, median_tokens: float) -> Iterator[str]:
    buckets = stats["buckets"]
    largest = ", ".join(f"{size} ({n})" for size, n in sorted(buckets.items(), key=lambda item: -item[1])[:6])
    more = f" and {len(buckets) - 6} more" if len(buckets) > 6 else ""
    low, high = stats["sides"]
    sides = f"{low} to {high}" if low < high else f"{low}"
    yield f"data       {stats['images']} images, sides {sides} px → {largest}{more}"
    yield (
        f"captions   {stats['captions']}, {stats['unique captions']} unique, median {median_tokens:g} tokens; "
        f"most frequent words: {', '.join(stats['frequent words'])}"
    )


def format_warnings(stats: dict, upscales: list[float], max_tokens: int) -> Iterator[str]:
    if truncated := stats["truncated captions"]:
        longest = stats["longest caption"]["tokens"]
        yield f"{truncated} of {stats['captions']} captions are truncated to {max_tokens} tokens; the longest has {longest}"
    if stats["upscaled images"]:
        yield f"{stats['upscaled images']} images are upscaled, at most {max(upscales):.1f} times"
    for key in ("identical images", "near-duplicate images"):
        if groups := stats[key]:
            more = f" and {len(groups) - 1} more groups" if len(groups) > 1 else ""
            yield f"{key}: {', '.join(groups[0][:5])}{more}"
    for error in stats["skipped"]:
        yield f"skipped: {error}"


def find_duplicates(records: dict[str, FileRecord]) -> dict[str, list[list[str]]]:
    """Group names of files with equal bytes, and pairs of images whose dHashes differ in at most `MAX_HASH_DISTANCE` bits."""
    identical, bands = defaultdict(list), defaultdict(list)
    for name, record in records.items():
        identical[record.digest].append(name)
    dhashes = {names[0]: records[names[0]].dhash for names in identical.values()}
    width = 64 // HASH_BANDS
    for name, dhash in dhashes.items():
        for band in range(HASH_BANDS):
            bands[band, dhash >> (band * width) & (1 << width) - 1].append(name)
    pairs = set()
    for names in bands.values():
        if len(names) < MAX_BAND_IMAGES:
            pairs |= {
                (a, b) for a, b in combinations(names, 2) if (dhashes[a] ^ dhashes[b]).bit_count() <= MAX_HASH_DISTANCE
            }
    return {
        "identical images": [names for names in identical.values() if len(names) > 1],
        "near-duplicate images": [list(pair) for pair in sorted(pairs)],
    }

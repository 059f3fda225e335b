"""Dataset report: statistics, buckets, captions and duplicates to check before a run."""

import json
import re
import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from pathlib import Path

import numpy as np

from sdft.data.compact_lists import group_equal, hash_all
from sdft.data.dataset import ImageDataset
from sdft.data.file_index import RecordTable

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
        with open(folder / "data.json", "w", encoding="utf-8") as file:
            json.dump({**self.stats, "warnings": self.warnings}, file, indent=1, ensure_ascii=False)
            file.write("\n")


def build_dataset_report(
    source: ImageDataset, sizes: list[tuple[int, int]], steps_per_epoch: float, tokenizer, max_tokens: int
) -> DatasetReport:
    """`sizes` are the training sizes of the images; `max_tokens` is the longest prompt that the text encoder accepts."""
    original_sizes, lists = source.sizes(), source.all_captions()
    lengths, captions = array("q"), chain.from_iterable(lists)
    while block := list(islice(captions, TOKENIZED_CAPTIONS)):
        lengths.extend(len(ids) for ids in tokenizer(block, truncation=False, verbose=False).input_ids)
    longest = max(lengths)
    pairs = zip(sizes, original_sizes, strict=True)
    upscales = np.fromiter((max(w / a, h / b) for (w, h), (a, b) in pairs), float, len(sizes))
    records, labels = source.file_records(), {size: f"{size[0]}x{size[1]}" for size in set(sizes)}
    stats = {
        "images": len(source),
        "captions": len(lengths),
        "unique captions": len(np.unique(hash_all(chain.from_iterable(lists)))),
        "sides": [min(min(size) for size in original_sizes), max(max(size) for size in original_sizes)],
        "buckets": {f"{w}x{h}": n for (w, h), n in sorted(Counter(sizes).items())},
        "steps per epoch": round(steps_per_epoch, 2),
        "longest caption": {
            "tokens": longest,
            "text": next(islice(chain.from_iterable(lists), lengths.index(longest), None)),
        },
        "truncated captions": sum(length > max_tokens for length in lengths),
        "frequent words": find_most_common(split_terms, lists, MAX_FREQUENT_WORDS),
        "words of every caption": find_shared_terms(chain.from_iterable(lists)),
        "frequent tags": find_most_common(split_tags, lists, MAX_FREQUENT_TAGS),
        "upscaled images": int((upscales > 1).sum()),
        "skipped": list(source.skipped_files()),
        **source.inventory().to_json(),
        "image buckets": {name: labels[size] for name, size in zip(records.names, sizes, strict=False)},
        **find_duplicates(records),
    }
    return DatasetReport(
        stats,
        [*format_summary(stats, statistics.median(lengths)), *source.inventory().format_lines()],
        list(format_warnings(stats, upscales.max(), max_tokens)),
    )


def split_terms(text: str) -> list[str]:
    """Words of at least three letters, in lower case."""
    return re.findall(r"\w[\w'-]{2,}", text.lower())


def split_tags(text: str) -> list[str]:
    """The parts between commas."""
    return [tag for part in text.split(",") if (tag := " ".join(part.split()))]


def find_most_common(split: Callable[[str], list[str]], lists: Sequence[list[str]], limit: int) -> dict[str, int]:
    """The most frequent parts of the captions, with their counts."""
    return dict(Counter(chain.from_iterable(map(split, chain.from_iterable(lists)))).most_common(limit))


def find_shared_terms(captions: Iterable[str]) -> list[str]:
    """The words that every caption contains, in the order of the first one."""
    shared = None
    for text in captions:
        terms = dict.fromkeys(split_terms(text))
        shared = list(terms) if shared is None else [term for term in shared if term in terms]
        if not shared:
            break
    return shared or []


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


def format_warnings(stats: dict, max_upscale: float, max_tokens: int) -> Iterator[str]:
    if truncated := stats["truncated captions"]:
        longest = stats["longest caption"]["tokens"]
        yield f"{truncated} of {stats['captions']} captions are truncated to {max_tokens} tokens; the longest has {longest}"
    if stats["upscaled images"]:
        yield f"{stats['upscaled images']} images are upscaled, at most {max_upscale:.1f} times"
    for key in ("identical images", "near-duplicate images"):
        if groups := stats[key]:
            more = f" and {len(groups) - 1} more groups" if len(groups) > 1 else ""
            yield f"{key}: {', '.join(groups[0][:5])}{more}"
    for error in stats["skipped"]:
        yield f"skipped: {error}"


def find_duplicates(records: RecordTable) -> dict[str, list[list[str]]]:
    """Group names of files with equal bytes, and pairs of images whose dHashes differ in at most `MAX_HASH_DISTANCE` bits."""
    identical = group_equal(np.ascontiguousarray(records.rows["digest"]).view("S32").reshape(-1))
    is_first = np.ones(len(records), bool)
    is_first[[index for group in identical for index in group[1:]]] = False
    indices, pairs, width = np.flatnonzero(is_first), set(), 64 // HASH_BANDS
    dhashes = records.rows["dhash"][indices]
    for band in range(HASH_BANDS):
        for group in group_equal((dhashes >> np.uint64(band * width)).astype(np.uint16)):
            if len(group) < MAX_BAND_IMAGES:
                hashes = zip(indices[group].tolist(), dhashes[group].tolist(), strict=True)
                pairs |= {
                    (a, b) for (a, x), (b, y) in combinations(hashes, 2) if (x ^ y).bit_count() <= MAX_HASH_DISTANCE
                }
    names = records.names
    return {
        "identical images": [[names[index] for index in group] for group in identical],
        "near-duplicate images": sorted([names[a], names[b]] for a, b in pairs),
    }

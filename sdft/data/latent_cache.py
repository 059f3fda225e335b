"""Frozen-network outputs, keyed by content: latent moments and text outputs are computed once and cached."""

import errno
import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor, nn

import sdft.distributed as processes
from sdft.data.dataset import CaptionedImage
from sdft.data.file_index import map_in_threads
from sdft.data.images import crop_with_mask
from sdft.data.required_entries import RequiredEntries
from sdft.data.tensor_cache import KEY_TYPE, CacheEntry, TensorCache
from sdft.data.training_dataset import TrainingDataset
from sdft.runs.hashing import hash_weights_on_rank_0
from sdft.runs.terminal import print_text

CACHE_DIR = Path("outputs/cache")
SHARD_SIZE = 256  # entries per file, at most
TOKENIZED_CAPTIONS = 1024  # at once
MAX_BATCH_SIZE = 32  # captions or small images per forward pass
MAX_PIXELS_GPU = 2 * 512**2  # per autoencoder forward pass on a GPU
MAX_PIXELS_CPU = 2**16  # on a CPU, larger batches only cost memory
FLUSH_INTERVAL = 15  # seconds after which an incomplete file is written


def fill_caches(
    datasets: list[TrainingDataset], model, text: bool, check: Callable[[int], None] = lambda size: None
) -> list[str]:
    """Attach latent caches, unless crops are random, and with `text` those of the text encoders; compute the missing entries.

    Returns the names of the model parts that training no longer needs. Calls `check` with the bytes that will be written,
    before computing anything.
    """
    settings, unused_parts, jobs = datasets[0].settings, [], []
    if settings.cache != "off" and settings.crop != "random":
        cache = open_cache(settings, "latents", [model.vae])
        jobs.append((cache, list_required_latents(datasets), build_latent_encoder(model), "latents"))
        for dataset in datasets:
            dataset.latents = cache
        unused_parts.append("vae")
    if settings.cache != "off" and text:
        cache = open_cache(settings, "text", list(model.text_encoders.values()), f"-{model.text_settings}")
        jobs.append((cache, list_required_captions(datasets), build_text_encoder(model), "captions"))
        for dataset in datasets:
            dataset.texts = cache
        unused_parts += model.text_encoders
    is_on_disk = settings.cache == "disk"
    check(sum(count_missing_bytes(cache, required, model) for cache, required, *_ in jobs) if is_on_disk else 0)
    max_pixels = MAX_PIXELS_CPU if model.vae.device.type == "cpu" else MAX_PIXELS_GPU
    counts = [(compute_missing(*job, max_pixels), job[-1]) for job in jobs]
    summary = ", ".join(f"{total} {label} ({new} new)" for (total, new), label in counts)
    if counts and processes.rank() == 0:
        print_text(f"cache      {summary} " + (f"in {CACHE_DIR}/" if is_on_disk else "in memory"), flush=True)
    return unused_parts


def open_cache(settings, kind: str, encoders: list[nn.Module], suffix: str = "") -> TensorCache:
    """The cache of the outputs of encoders; on disk, its folder is named after their weights. Collective."""
    if settings.cache == "ram":
        return TensorCache(None)
    folder = CACHE_DIR / kind / ("-".join(map(hash_weights_on_rank_0, encoders)) + suffix)
    return TensorCache(folder, processes.broadcast(is_writable_folder(folder) if processes.rank() == 0 else None))


def is_writable_folder(folder: Path) -> bool:
    """Create the folder; warn if that, or writing to it, is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return True
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True  # the write of the entries names it, if there are any
        print_text(
            f"cache      {folder}: {error.strerror}; new entries are kept in memory, as with cache=ram", flush=True
        )
        return False


def count_missing_bytes(cache: TensorCache, required: Mapping[bytes, tuple], model) -> int:
    """Bytes of the missing entries: fp32 moments and mask per latent, fp32 text outputs per caption."""
    missing = (required[key][0] for key in list_missing(cache, required))
    channels, text = 2 * model.vae.config.latent_channels + 1, sum(map(math.prod, model.text_shapes(1).values()))
    return sum(4 * (channels * size[0] * size[1] // model.vae_scale_factor**2 if size else text) for size in missing)


def compute_missing(
    cache: TensorCache, required: Mapping[bytes, tuple], compute, label: str, max_pixels: int = MAX_PIXELS_GPU
) -> tuple[int, int]:
    """Compute the entries that `cache` lacks on all ranks, and write them every `SHARD_SIZE` entries and `FLUSH_INTERVAL`.

    Returns the total and the new entries.
    """
    from rich.console import Console
    from rich.progress import Progress

    if (damaged := cache.drop_damaged(collect_keys(required))) and processes.rank() == 0:
        print_text(f"cache      {damaged} damaged {label} are computed again", flush=True)
    missing_by_rank = processes.all_gather(list_missing(cache, required))
    missing = list(dict.fromkeys(chain.from_iterable(missing_by_rank)))
    missing.sort(key=lambda key: required[key][0])  # equal sizes together
    console, hidden, rank, world = Console(), processes.rank() > 0, processes.rank(), processes.world_size()
    entries, written = {}, time.monotonic()
    with Progress(console=console, disable=hidden or not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=len(missing))
        for start in range(0, len(missing), SHARD_SIZE * world):
            shard = missing[start : start + SHARD_SIZE * world]
            batches = list(batch_by_size(shard[rank::world], required, max_pixels))
            rounds = processes.all_reduce_max(len(batches))
            for number in range(rounds):
                for batch in batches[number : number + 1]:
                    entries |= dict(zip(batch, compute([required[key] for key in batch]), strict=True))
                    bar.advance(task, len(batch) * world)
                is_due = processes.broadcast(time.monotonic() - written > FLUSH_INTERVAL)
                if is_due or number == rounds - 1:
                    cache.add_from_all_ranks(entries)
                    entries, written = {}, time.monotonic()
    return len(required), len(missing)


def collect_keys(required: Mapping[bytes, tuple]) -> np.ndarray:
    return np.fromiter(required, KEY_TYPE, len(required))


def list_missing(cache: TensorCache, required: Mapping[bytes, tuple]) -> list[bytes]:
    is_cached = cache.contains(collect_keys(required))
    return [key for key, cached in zip(required, is_cached, strict=True) if not cached]


def batch_by_size(keys: list[bytes], required: Mapping[bytes, tuple], max_pixels: int) -> Iterator[list[bytes]]:
    """Batches of keys with equal size, of at most `max_pixels` and `MAX_BATCH_SIZE`."""
    batch: list[bytes] = []
    for key in keys:
        size = required[key][0]
        limit = max(1, min(MAX_BATCH_SIZE, max_pixels // (size[0] * size[1]))) if size else MAX_BATCH_SIZE
        if batch and (len(batch) == limit or size != required[batch[0]][0]):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def list_required_latents(datasets: list[TrainingDataset]) -> RequiredEntries:
    """(size, dataset, index, flip) of every latent, by cache key."""

    def generate() -> Iterator[tuple[bytes, int, int, int, bool]]:
        for number, dataset in enumerate(datasets):
            for index in range(len(dataset)):
                for flip in (False, True) if dataset.settings.flip else (False,):
                    for variant, size in enumerate(dataset.list_target_sizes(index)):
                        yield dataset.latent_key(index, size, flip), number, index, variant, flip

    def get_arguments(number: int, index: int, variant: int, flip: int) -> tuple:
        return datasets[number].list_target_sizes(index)[variant], datasets[number], index, bool(flip)

    return RequiredEntries(generate(), get_arguments)


def list_required_captions(datasets: list[TrainingDataset]) -> RequiredEntries:
    """(0, caption) of every caption that may be drawn and of the empty caption, by cache key."""

    def generate() -> Iterator[tuple[bytes, int, int, int, bool]]:
        for number, dataset in enumerate(datasets):
            positions = ((index, place) for index, texts in enumerate(dataset.captions) for place in range(len(texts)))
            positions, captions = chain([(-1, 0)], positions), chain([""], chain.from_iterable(dataset.captions))
            while block := list(islice(captions, TOKENIZED_CAPTIONS)):
                for ids, position in zip(dataset.tokenizer(block), islice(positions, len(block)), strict=True):
                    yield dataset.text_key(ids), number, *position, False

    def get_arguments(number: int, index: int, place: int, _: int) -> tuple:
        return 0, datasets[number].captions[index][place] if index >= 0 else ""

    return RequiredEntries(generate(), get_arguments)


def build_latent_encoder(model):
    """Return a function that computes fp32 `mean` and `std` `[4, h/8, w/8]` and `mask` `[1, h/8, w/8]` entries."""
    recent: dict[tuple, CaptionedImage] = {}  # the last batch, in case the next one needs the flipped image

    def decode(source: tuple) -> CaptionedImage:
        size, dataset, index = source
        if source in recent:
            return recent[source]
        image = dataset.source.load_image(index, size)
        dataset.source.check_content(index)  # the latents are stored under its digest
        return image

    def crop(latent: tuple) -> dict[str, Tensor]:
        size, dataset, index, flip = latent
        sample = recent[size, dataset, index]
        image = crop_with_mask(sample.image, sample.mask, size, dataset.latent_shape(size)[1:], flip=flip)
        if not flip:
            dataset.contact_sheet.add(index, size, image["pixels"])
        return image

    def compute(arguments: list[tuple]) -> list[CacheEntry]:
        sources = list(dict.fromkeys(latent[:3] for latent in arguments))
        decoded = dict(zip(sources, map_in_threads(decode, sources), strict=True))
        recent.clear()
        recent.update(decoded)
        images = map_in_threads(crop, arguments)
        mean, std = model.moments(torch.stack([image["pixels"] for image in images]).to(model.vae.device))
        return [
            {"mean": m, "std": s, "mask": image["mask"]}
            for m, s, image in zip(mean.cpu(), std.cpu(), images, strict=True)
        ]

    return compute


def build_text_encoder(model):
    """Return a function that computes entries of the text outputs, such as `context` `[tokens, width]`."""

    @torch.no_grad()
    def compute(arguments: list[tuple]) -> list[CacheEntry]:
        device = next(iter(model.text_encoders.values())).device
        text = model.encode_text(model.tokenize([text for _, text in arguments]).to(device))
        rows = zip(*(output.float().cpu() for output in text.values()), strict=True)
        return [dict(zip(text, row, strict=True)) for row in rows]

    return compute

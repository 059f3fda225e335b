"""What is frozen is computed once: the moments of latents and the contexts of captions, by content, in memory or in files."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import sdft.distributed as processes
from sdft.data.training_samples import TrainingDataset
from sdft.runs.files import atomic_write
from sdft.runs.hashing import hash_weights

CACHE_DIR = Path("outputs/cache")
SHARD_SIZE = 256  # entries in a file
MAX_BATCH_SIZE = 32  # captions, or small pictures, that a network sees at once
MAX_PIXELS_GPU = 2 * 512**2  # of the pictures that the autoencoder sees at once on a GPU
MAX_PIXELS_CPU = 2**16  # of those on a CPU, which gains nothing from more but holds all that comes of them

CacheEntry = dict[str, Tensor]


class TensorCache:
    """Entries by key. In a folder: safetensors files that appear whole, are mapped into memory, and serve every later run."""

    def __init__(self, folder: Path | None):
        self.folder, self.memory, self.locations, self.files = folder, {}, {}, {}
        for path in sorted(folder.glob("*.safetensors")) if folder else ():
            self.index_valid_file(path)

    def index_valid_file(self, path: Path) -> None:
        """Whatever a full disk or a broken copy has left of a file is thrown away."""
        from safetensors import SafetensorError

        try:
            self.index_file(path)
        except FileNotFoundError:
            return  # the first process was here
        except SafetensorError:
            if processes.rank() == 0:
                print(f"cache    {path}: cut off; what it held is computed again", flush=True)
                path.unlink()

    def index_file(self, path: Path) -> None:
        for name in self.open(path).keys():  # noqa: SIM118 (not a dict)
            self.locations.setdefault(name.rsplit(".", 1)[0], (path, []))[1].append(name)

    def open(self, path: Path):
        from safetensors import safe_open

        if path not in self.files:
            self.files[path] = safe_open(path, "pt")
        return self.files[path]

    def __getstate__(self):
        return self.__dict__ | {"files": {}}  # each process maps the files itself

    def __contains__(self, key: str) -> bool:
        return key in self.memory or key in self.locations

    def __getitem__(self, key: str) -> CacheEntry:
        if key in self.memory:
            return self.memory[key]
        path, names = self.locations[key]
        return {name.rsplit(".", 1)[1]: self.open(path).get_tensor(name) for name in names}

    def add_from_all_ranks(self, entries: dict[str, CacheEntry]) -> None:
        """What every process adds is then in all of their stores; the first one writes the files."""
        if self.folder is None:
            for part in processes.all_gather(entries):
                self.memory |= part
            return
        parts = processes.gather(entries)
        path = processes.broadcast(
            self.add({key: entry for part in parts for key, entry in part.items()}) if parts else None
        )
        if not path.is_file():
            raise ValueError(
                f"{path}: written by another process and not seen here; give cache=ram, or share the folder"
            )
        if path not in self.files:
            self.index_file(path)

    def add(self, entries: dict[str, CacheEntry]) -> Path:
        """Write a file of them."""
        from safetensors.torch import save

        tensors = {f"{key}.{name}": t.contiguous() for key, entry in entries.items() for name, t in entry.items()}
        path = self.folder / f"{hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()[:16]}.safetensors"
        with atomic_write(path) as file:
            file.write_bytes(save(tensors))
        self.index_file(path)
        return path


def fill_caches(
    streams: list[TrainingDataset], model, text: bool, check: Callable[[int], None] = lambda size: None
) -> list[str]:
    """Give the samples their latents, unless crops are random, and with `text` their contexts; compute only what is missing.

    Returns the parts of the model that training then does without. `check` is told first how many bytes of files are missing.
    """
    stream, rest, kinds = streams[0].settings, [], []
    if stream.cache != "off" and stream.crop != "random":
        store = TensorCache(None if stream.cache == "ram" else CACHE_DIR / "latents" / hash_weights(model.vae))
        kinds.append((store, list_required_latents(streams), build_latent_encoder(model), "latents"))
        for samples in streams:
            samples.latents = store
        rest.append("vae")
    if stream.cache != "off" and text:
        known = f"{hash_weights(model.text_encoder)}-{str(model.compute_dtype).removeprefix('torch.')}"
        store = TensorCache(None if stream.cache == "ram" else CACHE_DIR / "text" / known)
        kinds.append((store, list_required_contexts(streams), build_context_encoder(model), "captions"))
        for samples in streams:
            samples.contexts = store
        rest.append("text_encoder")
    check(
        sum(count_missing_bytes(store, wanted, model) for store, wanted, *_ in kinds) if stream.cache == "disk" else 0
    )
    pixels = MAX_PIXELS_CPU if model.vae.device.type == "cpu" else MAX_PIXELS_GPU
    counts = [(compute_missing(*kind, pixels), kind[-1]) for kind in kinds]
    told = ", ".join(f"{total} {what} ({new} made now)" for (total, new), what in counts)
    if counts and processes.rank() == 0:
        print(f"cache    {told} " + (f"in {CACHE_DIR}/" if stream.cache == "disk" else "in memory"), flush=True)
    return rest


def count_missing_bytes(store: TensorCache, wanted: dict[str, tuple], model) -> int:
    """Of entries that `store` lacks: fp32 moments and a mask of every latent, or a context."""
    facts = [fact for key, fact in wanted.items() if key not in store]
    numbers, width = 2 * model.vae.config.latent_channels + 1, model.text_encoder.config.hidden_size
    return sum(
        4 * (numbers * fact[0][0] * fact[0][1] // model.vae_scale_factor**2 if fact[0] else len(fact[1]) * width)
        for fact in facts
    )


def compute_missing(
    store: TensorCache, wanted: dict[str, tuple], compute, what: str, pixels: int = MAX_PIXELS_GPU
) -> tuple[int, int]:
    """Let `compute` make what `store` lacks, a shard at a time in every process; returns how many there are, and how many were
    made now."""
    from rich.console import Console
    from rich.progress import Progress

    missing = processes.broadcast([key for key in wanted if key not in store])
    missing.sort(key=lambda key: wanted[key][0])  # equal sizes together
    console, hidden = Console(), processes.rank() > 0
    with Progress(console=console, disable=hidden or not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=len(missing))
        for start in range(0, len(missing), SHARD_SIZE * processes.world_size()):
            share, entries = missing[start : start + SHARD_SIZE * processes.world_size()], {}
            for batch in batch_by_size(share[processes.rank() :: processes.world_size()], wanted, pixels):
                entries |= dict(zip(batch, compute([wanted[key] for key in batch]), strict=True))
                bar.advance(task, len(batch) * processes.world_size())
            store.add_from_all_ranks(entries)
    return len(wanted), len(missing)


def batch_by_size(keys: list[str], wanted: dict[str, tuple], pixels: int) -> Iterator[list[str]]:
    """Batches of keys whose first fact, their size, is the same, and small enough for that size."""
    batch: list[str] = []
    for key in keys:
        size = wanted[key][0]
        most = max(1, min(MAX_BATCH_SIZE, pixels // (size[0] * size[1]))) if size else MAX_BATCH_SIZE
        if batch and (len(batch) == most or size != wanted[batch[0]][0]):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def list_required_latents(streams: list[TrainingDataset]) -> dict[str, tuple]:
    """Size, samples, index and flip of every latent by its key."""
    wanted = {}
    for samples in streams:
        for index in range(len(samples)):
            for flip in (False, True) if samples.settings.flip else (False,):
                for size in samples.list_target_sizes(index):
                    wanted[samples.latent_key(index, size, flip)] = (size, samples, index, flip)
    return wanted


def list_required_contexts(streams: list[TrainingDataset]) -> dict[str, tuple]:
    """Token ids by key, of every caption that may be drawn and of none."""
    return {
        samples.text_key(ids): (0, ids) for samples in streams for ids in [samples.empty_ids, *torch.cat(samples.ids)]
    }


def build_latent_encoder(model):
    """From facts to entries of mean and std `[4, h/8, w/8]`, in fp32, and of the mask `[1, h/8, w/8]`."""

    def compute(facts: list[tuple]) -> list[CacheEntry]:
        from sdft.data.file_index import map_in_threads

        pictures = map_in_threads(lambda fact: fact[1].decode(fact[2], fact[0], flip=fact[3]), facts)
        device = model.vae.device
        mean, std = model.moments(torch.stack([picture["pixels"] for picture in pictures]).to(device))
        return [
            {"mean": m, "std": s, "mask": p["mask"]} for m, s, p in zip(mean.cpu(), std.cpu(), pictures, strict=True)
        ]

    return compute


def build_context_encoder(model):
    """From token ids to entries of context `[tokens, width]`."""

    @torch.no_grad()
    def compute(facts: list[tuple]) -> list[CacheEntry]:
        ids = torch.stack([fact[1] for fact in facts]).to(model.text_encoder.device)
        with torch.autocast(ids.device.type, model.compute_dtype, enabled=model.compute_dtype is not torch.float32):
            return [{"context": context} for context in model.condition(ids).cpu()]

    return compute

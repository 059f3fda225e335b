"""Ranks that wait for the work of another do not time out, and the data is scanned once per machine."""

import tarfile
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from forked import call_in_two_ranks
from omegaconf import OmegaConf
from PIL import Image

import sdft.distributed as processes
from sdft.training.datasets import load_source

COLLECTIVE_TIMEOUT = 3  # seconds


def wait_for_rank_0() -> list:
    processes.COLLECTIVE_TIMEOUT = timedelta(seconds=COLLECTIVE_TIMEOUT)
    processes.init_process_group(on_cpu=True)
    rank = processes.rank()
    has_timed_out = False
    if rank == 0:
        time.sleep(2 * COLLECTIVE_TIMEOUT + 1)
    else:
        try:
            torch.distributed.all_reduce(torch.ones(1))
        except RuntimeError as error:
            has_timed_out = "imed out" in str(error)
    results = [processes.broadcast("scores" if rank == 0 else None), processes.all_reduce_max(rank)]
    results += [processes.all_gather(rank), processes.gather(rank), processes.compute_on_node(lambda: rank)]
    return [*results, has_timed_out]


@pytest.mark.slow
def test_a_rank_may_wait_for_another_for_longer_than_a_collective(tmp_path):
    first, second = call_in_two_ranks(wait_for_rank_0, cwd=tmp_path)
    assert first == ["scores", 1, [0, 1], [0, 1], 0, False]
    assert second == ["scores", 1, [0, 1], [], 0, True]


def count_reads(cfg: dict) -> tuple:
    """How many images and captions this rank opens to load the data, and what it then knows."""
    counts = {"images": 0, "files": 0}
    open_image, open_path = Image.open, Path.open

    def count_image(*args, **options):
        counts["images"] += 1
        return open_image(*args, **options)

    def count_file(file, *args, **options):
        counts["files"] += file.parent.name == "images"
        return open_path(file, *args, **options)

    Image.open, Path.open = count_image, count_file
    processes.init_process_group(on_cpu=True)
    try:
        source = load_source(OmegaConf.create(cfg | {"caption_template": "{caption}!"}))
    except Exception as error:
        return counts["images"], str(error.__cause__ or error)
    loaded = dict(counts)
    facts = (source.captions(), source.sizes(), [source.digest(i) for i in range(len(source))], source.skipped_files())
    return loaded, facts


def write_images(folder: Path, damaged: bool) -> Path:
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((40 + number, 32), 60).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"image {number}")
    if damaged:
        (folder / "3.png").write_bytes(b"damaged")
    return folder


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("folder", "shards")), "damaged"]
)
def test_one_process_of_a_machine_scans_the_data(tmp_path, kind):
    folder = write_images(tmp_path / "images", damaged=kind == "damaged")
    data = {"_target_": "sdft.data.image_folder.ImageFolder", "path": str(folder), "verify": "full"}
    if kind == "shards":
        with tarfile.open(tmp_path / "0.tar", "w") as shard:
            for file in sorted(folder.iterdir()):
                shard.add(file, file.name)
        data = {"_target_": "sdft.data.webdataset.WebDatasetShards", "path": str(tmp_path)}
    (counts, facts), (other_counts, other_facts) = call_in_two_ranks(count_reads, {"data": data}, cwd=tmp_path)
    assert facts == other_facts
    if kind == "damaged":
        assert (counts, other_counts) == (4, 0) and "3.png" in facts
    else:
        assert counts["images"] == 3 and other_counts == {"images": 0, "files": 0}

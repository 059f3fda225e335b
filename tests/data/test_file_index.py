"""A digest is trusted while inode, size and times of its file stay equal, and checked when a latent is encoded."""

import os
import shutil
import time

import pytest
from conftest import save_images
from PIL import Image

import sdft.data.file_index as file_index
from sdft.data.contact_sheet import ContactSheet
from sdft.data.content_index import ContentIndex, ContentRecord
from sdft.data.digits import Digits
from sdft.data.image_folder import ImageFolder
from sdft.data.latent_cache import fill_caches
from sdft.data.training_dataset import DataSettings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two images and two masks of equal sizes and times."""
    monkeypatch.chdir(tmp_path)
    folder = save_images(Digits(per_digit=1), tmp_path / "images", 2, captions=True)
    length = max(file.stat().st_size for file in folder.glob("*.png"))
    for file in folder.glob("*.png"):
        file.write_bytes(file.read_bytes().ljust(length, b"\0"))
    for number in range(2):
        mask = Image.new("L", (32, 32), 255)
        mask.paste(0, (0, 0, 16, 16) if number else (16, 16, 32, 32))
        mask.save(folder / f"{number}.mask.png")
    set_times(folder)
    return folder


def set_times(folder):
    for file in folder.iterdir():
        os.utime(file, ns=(10**18, 10**18))


def swap(one, other):
    one.rename(one.with_suffix(".swap"))
    other.rename(one)
    one.with_suffix(".swap").rename(other)


def read_digests(folder, **options) -> list[str]:
    source = ImageFolder(str(folder), **options)
    return [source.digest(index) for index in range(len(source))]


@pytest.mark.parametrize("suffix", [".png", ".mask.png"])
def test_files_of_equal_size_and_time_that_swap_names_swap_digests(folder, suffix):
    before = read_digests(folder)
    swap(folder / f"0{suffix}", folder / f"1{suffix}")
    set_times(folder)
    after = read_digests(folder)
    assert after != before and after == read_digests(folder, verify="full")
    assert sorted(part for text in after for part in text.split()) == sorted(p for t in before for p in t.split())


def test_a_file_overwritten_in_place_with_equal_size_and_time_is_hashed_again(folder):
    before = read_digests(folder)
    content = (folder / "1.png").read_bytes()
    with open(folder / "0.png", "r+b") as file:
        file.write(content)
    set_times(folder)
    after = read_digests(folder)
    assert after != before and after[0].split()[0] == before[1].split()[0]


@pytest.mark.parametrize("seconds", [-(10**6), 10**10])
def test_a_wrong_clock_changes_nothing(folder, monkeypatch, seconds):
    before = read_digests(folder)
    for file in folder.iterdir():
        os.utime(file, (10**9 + seconds, 10**9 + seconds))
    decoded = []
    monkeypatch.setattr(file_index, "inspect_file", lambda file, decode: decoded.append(file))
    assert read_digests(folder) == before and not decoded


def test_full_verification_hashes_files_whose_identity_is_unchanged(folder, monkeypatch):
    before = read_digests(folder)
    monkeypatch.setattr(file_index, "get_identity", lambda file: (1, 2, 3, 4))
    read_digests(folder)
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    assert read_digests(folder) == before
    assert read_digests(folder, verify="full")[0].split()[0] == before[1].split()[0]
    with pytest.raises(ValueError, match=r"data\.verify=some: .*changed, full"):
        ImageFolder(str(folder), verify="some")


def test_a_digest_is_checked_when_a_latent_is_encoded(folder, tiny, monkeypatch):
    monkeypatch.setattr(file_index, "get_identity", lambda file: (1, 2, 3, 4))
    read_digests(folder)
    for name in ("0.png", "1.mask.png"):
        content = (folder / name).read_bytes()
        Image.new("RGB", (32, 32), "red").save(folder / name)
        samples = DataSettings(32).build_dataset(ImageFolder(str(folder)), tiny())
        with pytest.raises(ValueError, match=rf"{name}: .*data\.verify=full"):
            fill_caches([samples], tiny(), text=False)
        (folder / name).write_bytes(content)


def test_a_moved_and_a_copied_folder_are_known_by_content(folder, tiny, capsys):
    model = tiny()
    moved, copied = folder.with_name("moved"), folder.with_name("copied")
    for source in (folder, moved, copied):
        if source == moved:
            folder.rename(moved)
        elif source == copied:
            shutil.copytree(moved, copied)
        samples = DataSettings(32).build_dataset(ImageFolder(str(source)), model)
        fill_caches([samples], model, text=False)
        assert f"2 latents ({2 if source == folder else 0} new)" in capsys.readouterr().out


def test_renamed_and_touched_files_are_not_decoded_again(folder, monkeypatch):
    before = read_digests(folder)
    (folder / "0.png").rename(folder / "9.png")
    (folder / "0.txt").rename(folder / "9.txt")
    (folder / "0.mask.png").rename(folder / "9.mask.png")
    (folder / "1.png").touch()
    monkeypatch.setattr(file_index, "inspect_file", None)
    assert read_digests(folder) == before[::-1]


def test_an_image_is_not_accepted_as_a_mask_by_its_content(folder):
    Image.new("RGB", (32, 32)).save(folder / "0.png")
    read_digests(folder)
    shutil.copy(folder / "0.png", folder / "1.mask.png")
    with pytest.raises(ValueError, match=r"1\.mask\.png: .*black"):
        ImageFolder(str(folder))


@pytest.mark.parametrize("position", range(5, 95, 10))
def test_a_damaged_index_is_not_used(folder, position):
    """Wherever a bit is flipped, digests and sizes stay right."""
    before = read_digests(folder)
    [file] = file_index.SCAN_CACHE_DIR.glob("*.npz")
    content = bytearray(file.read_bytes())
    content[len(content) * position // 100] ^= 4
    file.write_bytes(content)
    source = ImageFolder(str(folder))
    assert read_digests(folder) == before and source.sizes() == [(32, 32)] * 2


def test_an_interrupted_scan_resumes_where_it_was(folder, monkeypatch):
    monkeypatch.setattr(file_index, "BLOCK_SIZE", 1)
    monkeypatch.setattr(file_index, "SAVE_INTERVAL", -1)
    inspect, inspected = file_index.inspect_file, []

    def interrupt(file, decode):
        inspected.append(file.name)
        if len(inspected) == 3:
            raise KeyboardInterrupt
        return inspect(file, decode)

    monkeypatch.setattr(file_index, "inspect_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ImageFolder(str(folder))
    ImageFolder(str(folder))
    assert len(inspected) == 4 + 1 and inspected[:3] == inspected[:2] + inspected[3:4]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_an_index_that_cannot_be_written_is_reported_and_not_needed(folder, monkeypatch, capsys, error):
    def refuse(*names):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        source = ImageFolder(str(folder))
        sheet = ContactSheet(source, source.sizes()).draw()
    assert len(source) == 2 and sheet.width == 1200
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(error.strerror in line for line in lines)
    assert not [file for file in folder.parent.glob("outputs/cache/*/*") if file.suffix != ".lock"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires fork")
def test_processes_that_start_together_decode_each_file_once(folder, monkeypatch):
    log, inspect = folder.parent / "log.txt", file_index.inspect_file

    def inspect_slowly(file, decode):
        with open(log, "a") as stream:
            stream.write(f"{file.name}\n")
        time.sleep(0.1)
        return inspect(file, decode)

    monkeypatch.setattr(file_index, "inspect_file", inspect_slowly)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(len(ImageFolder(str(folder))) != 2)
        finally:
            os._exit(status)
    ImageFolder(str(folder))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(log.read_text().split()) == ["0.mask.png", "0.png", "1.mask.png", "1.png"]


def test_a_damaged_index_of_shards_is_not_used(folder, monkeypatch):
    index = ContentIndex("shards")
    index.look_up(b"image", lambda key: ContentRecord(40, 32, key))
    index.save()
    content = bytearray(index.file.read_bytes())
    assert ContentIndex("shards").records == index.records
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 2
        index.file.write_bytes(damaged)
        assert ContentIndex("shards").records in ({}, index.records)

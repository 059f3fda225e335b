"""Every format that ACCEPTANCE lists reads alike."""

import csv
import io
import json
import os
import tarfile

import pytest
from PIL import Image

from sdft.data.dataset_report import build_dataset_report, draw_contact_sheet
from sdft.data.file_index import compute_dhash
from sdft.data.hf_dataset import HuggingFaceDataset
from sdft.data.image_folder import ImageFolder
from sdft.data.training_samples import DataSettings
from sdft.data.transforms import split_validation
from sdft.data.webdataset import WebDatasetShards

ROWS = [("a.jpg", "an a"), ("sub/b.PNG", "a b"), ("c.webp", "a c")]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number, (name, _) in enumerate(ROWS):
        Image.effect_noise((40 + number, 32), 60 + 9 * number).convert("RGB").save(folder / name, format="PNG")
    return folder


def told(source) -> dict[str, str]:
    return dict(zip([str(f.relative_to(source.root)) for f in source.files], source.captions(), strict=True))


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "semicolons", "parquet", "other names"])
def test_captions_come_from_every_format(pictures, form):
    options, image, text = {}, "file_name", "text"
    if form == "other names":
        image, text = "file", "title"
        options = {"image_column": image, "caption_column": text}
    if form == "txt":
        for name, caption in ROWS:
            (pictures / name).with_suffix(".txt").write_text(caption)
    elif form == "jsonl":
        (pictures / "metadata.jsonl").write_text("\n".join(json.dumps({image: n, text: c}) for n, c in ROWS))
    elif form == "parquet":
        table, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        names, captions = zip(*ROWS, strict=True)
        parquet.write_table(table.table({image: names, text: captions}), pictures / "metadata.parquet")
    else:
        with open(pictures / "metadata.csv", "w", newline="") as file:
            csv.writer(file, delimiter=";" if form == "semicolons" else ",").writerows([(image, text), *ROWS])
    assert told(ImageFolder(str(pictures), **options)) == dict(ROWS)


def test_a_caption_may_be_a_list(pictures):  # S3-14
    rows = [{"file_name": name, "text": [caption, "else", ""]} for name, caption in ROWS]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = ImageFolder(str(pictures))
    assert told(source) == dict(ROWS) and source.all_captions()[0][1:] == ["else"]


def test_two_tables_are_one_too_many(pictures):
    (pictures / "metadata.jsonl").write_text("")
    (pictures / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match="metadata.jsonl and metadata.csv; keep one of them"):
        ImageFolder(str(pictures), caption="a thing")


def shard(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def test_shards_are_read_at_random(pictures, tmp_path):
    contents = [(pictures / name).read_bytes() for name, _ in ROWS]
    (tmp_path / "shards").mkdir()
    shard(
        tmp_path / "shards" / "0.tar",
        {"x/1.jpg": contents[0], "x/1.txt": b"an a", "2.png": contents[1], "2.json": b'{"text": ["a b", "z"]}'},
    )
    shard(
        tmp_path / "shards" / "1.tar", {"./v1.0/1.webp": contents[2], "./v1.0/1.TXT": b"a c", "./v1.0/1.json": b"[1]"}
    )
    for path in ("shards", "shards/*.tar"):
        source = WebDatasetShards(str(tmp_path / path))
        assert source.captions() == ["an a", "a b", "a c"] and source.all_captions()[1] == ["a b", "z"]
        assert [source[i].image.width for i in (2, 0, 1)] == [42, 40, 41]
    with pytest.raises(ValueError, match="no shards there"):
        WebDatasetShards(str(tmp_path / "nowhere"))
    shard(tmp_path / "bare.tar", {"1.webp": contents[2]})
    with pytest.raises(ValueError, match="no caption for 1.webp"):
        WebDatasetShards(str(tmp_path / "bare.tar"))
    (tmp_path / "broken.tar").write_bytes(b"no")
    with pytest.raises(ValueError, match="broken.tar: not a readable shard"):
        WebDatasetShards(str(tmp_path / "broken.tar"))


def test_a_hub_dataset_with_its_own_column_names(pictures, tmp_path, monkeypatch):  # S2-07
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"file_name": name, "title": caption} for name, caption in ROWS]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = HuggingFaceDataset(str(pictures), caption_column="title")
    assert sorted(source.captions()) == sorted(caption for _, caption in ROWS) and len(source) == 3
    assert (
        source[0].image.mode == "RGB" and len(HuggingFaceDataset(str(pictures), caption_column="title", limit=2)) == 2
    )
    with pytest.raises(ValueError, match="data.caption_column=text: the dataset has image, title"):
        HuggingFaceDataset(str(pictures))
    with pytest.raises(ValueError, match="data.name=nobody/nothing: "):
        HuggingFaceDataset("nobody/nothing")


def test_shards_and_others_are_decoded_once_to_be_measured(pictures, tmp_path, monkeypatch):
    shard(tmp_path / "a.tar", {"1.png": (pictures / "a.jpg").read_bytes(), "1.txt": b"an a"})
    source, decoded, whole = WebDatasetShards(str(tmp_path / "a.tar")), [], WebDatasetShards.load_image
    monkeypatch.setattr(WebDatasetShards, "load_image", lambda s, i, size: decoded.append(i) or whole(s, i, size))
    assert source.sizes() == source.sizes() == [(40, 32)] and source.digest(0) == source.digest(0)
    assert decoded == [0]


def test_lines_of_json_may_hold_other_line_separators(pictures):
    rows = [{"file_name": name, "text": caption + "\u2028 more"} for name, caption in ROWS]
    (pictures / "metadata.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert told(ImageFolder(str(pictures)))["a.jpg"] == "an a\u2028 more"


def test_a_fault_is_not_remembered(pictures, monkeypatch):
    whole = (pictures / "a.jpg").read_bytes()
    times = (pictures / "a.jpg").stat()
    (pictures / "a.jpg").write_bytes(b"\0" * len(whole))
    os.utime(pictures / "a.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(ImageFolder(str(pictures), caption="a thing", on_error="skip")) == 2
    (pictures / "a.jpg").write_bytes(whole)
    os.utime(pictures / "a.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(ImageFolder(str(pictures), caption="a thing", on_error="skip")) == 3


def test_the_report_says_which_picture_went_where_without_those_held_out(pictures, tiny):  # pitfall 25
    model = tiny()
    taught, spare = split_validation(ImageFolder(str(pictures), caption="a thing"), 1)
    found = build_dataset_report(
        taught, DataSettings(32).sizes(taught, model.size_multiple), 1, model.tokenizer, model.chunk_length
    )
    assert len(found.stats["bucket of"]) == 2 and not set(spare.file_records()) & set(found.stats["bucket of"])


def test_two_pictures_of_one_name_share_its_mask(pictures):
    Image.new("RGB", (40, 32)).save(pictures / "a.png")
    Image.new("L", (40, 32), 255).save(pictures / "a.mask.png")
    assert len(ImageFolder(str(pictures), caption="a thing").masks) == 2


def test_the_report_finds_equal_alike_enlarged_and_long(pictures, tiny):
    first = Image.open(pictures / "a.jpg").convert("RGB")
    first.save(pictures / "copy.jpg", quality=95)
    brighter = first.point(lambda value: min(255, value + 3))
    brighter.save(pictures / "brighter.png")
    (pictures / "same.png").write_bytes((pictures / "c.webp").read_bytes())
    source, model = ImageFolder(str(pictures), caption="a thing " * 30), tiny()
    sizes = [(64, 64)] * len(source)
    found = build_dataset_report(source, sizes, 6, model.tokenizer, model.chunk_length)
    assert found.stats["equal pictures"] == [["c.webp", "same.png"]]
    assert {frozenset(pair) for pair in found.stats["alike pictures"]} >= {frozenset(("a.jpg", "copy.jpg"))}
    assert found.stats["enlarged"] == 6 and found.stats["truncated captions"] == 6
    assert len(found.warnings) == 4 and found.stats["frequent words"] == {"thing": 180}
    assert draw_contact_sheet(source, sizes).width == 1200
    assert (compute_dhash(first) ^ compute_dhash(brighter)).bit_count() <= 3


def test_a_jpeg_is_decoded_no_finer_than_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    Image.effect_noise((1600, 1200), 50).convert("RGB").save(tmp_path / "p" / "a.jpg")
    source = ImageFolder(str(tmp_path / "p"), caption="a thing")
    assert source.sizes() == [(1600, 1200)] and source[0].image.size == (1600, 1200)
    assert source.load_image(0, (256, 192)).image.size == (400, 300)


def test_files_are_opened_once_until_they_change(pictures, monkeypatch):
    opened, whole = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, *rest, **more: opened.append(str(file)) or whole(file, *rest, **more)
    )
    for count in (3, 0):
        opened.clear()
        ImageFolder(str(pictures), caption="a thing")
        assert len(opened) == count
    Image.new("RGB", (50, 50)).save(pictures / "c.webp")
    opened.clear()
    assert ImageFolder(str(pictures), caption="a thing").sizes()[-2:] == [(50, 50), (41, 32)] and len(opened) == 1


def test_rows_of_one_picture_are_its_captions(pictures):
    rows = [*ROWS, ("a.jpg", "another"), ("a.jpg", "an a")]
    (pictures / "metadata.csv").write_text("file_name,text\n" + "\n".join(map(",".join, rows)))
    assert ImageFolder(str(pictures)).all_captions() == [["an a", "another"], ["a c"], ["a b"]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('"a.jpg","an a\nsub/b.PNG,a b\nc.webp,a c', r"metadata.csv:4: not a line of CSV \(unexpected end of data\)"),
        ("a.jpg,an \0a", r"metadata.csv:2: text is .* with null bytes"),
    ],
)
def test_a_quote_that_never_ends_swallows_no_rows_and_null_bytes_are_not_learned(pictures, text, told):
    (pictures / "metadata.csv").write_text(f"file_name,text\n{text}")
    with pytest.raises(ValueError, match=told):
        ImageFolder(str(pictures))

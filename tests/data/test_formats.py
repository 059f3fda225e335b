"""Every dataset format of ACCEPTANCE gives the same images and captions."""

import csv
import io
import json
import os
import tarfile

import pytest
from PIL import Image

from sdft.data.contact_sheet import ContactSheet
from sdft.data.dataset_report import build_dataset_report
from sdft.data.file_index import compute_dhash
from sdft.data.hf_dataset import HuggingFaceDataset
from sdft.data.image_folder import ImageFolder
from sdft.data.training_dataset import DataSettings
from sdft.data.transforms import split_validation
from sdft.data.webdataset import WebDatasetShards

ROWS = [("a.jpg", "an a"), ("sub/b.PNG", "a b"), ("c.webp", "a c")]


@pytest.fixture
def image_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, (name, _) in enumerate(ROWS):
        Image.effect_noise((40 + number, 32), 60 + 9 * number).convert("RGB").save(folder / name, format="PNG")
    return folder


def captions_by_name(source) -> dict[str, str]:
    return dict(zip([str(f.relative_to(source.root)) for f in source.files], source.captions(), strict=True))


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "semicolons", "parquet", "other columns"])
def test_every_format_gives_the_captions(image_folder, form):
    options, image, text = {}, "file_name", "text"
    if form == "other columns":
        image, text = "file", "title"
        options = {"image_column": image, "caption_column": text}
    if form == "txt":
        for name, caption in ROWS:
            (image_folder / name).with_suffix(".txt").write_text(caption)
    elif form == "jsonl":
        (image_folder / "metadata.jsonl").write_text("\n".join(json.dumps({image: n, text: c}) for n, c in ROWS))
    elif form == "parquet":
        table, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        names, captions = zip(*ROWS, strict=True)
        parquet.write_table(table.table({image: names, text: captions}), image_folder / "metadata.parquet")
    else:
        with open(image_folder / "metadata.csv", "w", newline="") as file:
            csv.writer(file, delimiter=";" if form == "semicolons" else ",").writerows([(image, text), *ROWS])
    assert captions_by_name(ImageFolder(str(image_folder), **options)) == dict(ROWS)


def test_caption_may_be_a_list(image_folder):  # S3-14
    rows = [{"file_name": name, "text": [caption, "else", ""]} for name, caption in ROWS]
    (image_folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = ImageFolder(str(image_folder))
    assert captions_by_name(source) == dict(ROWS) and source.all_captions()[0][1:] == ["else"]


def test_two_tables_are_refused(image_folder):
    (image_folder / "metadata.jsonl").write_text("")
    (image_folder / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match="metadata.jsonl and metadata.csv; "):
        ImageFolder(str(image_folder), default_caption="a thing")


def write_shard(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def test_shards_are_read_in_any_order(image_folder, tmp_path):
    contents = [(image_folder / name).read_bytes() for name, _ in ROWS]
    (tmp_path / "shards").mkdir()
    write_shard(
        tmp_path / "shards" / "0.tar",
        {"x/1.jpg": contents[0], "x/1.txt": b"an a", "2.png": contents[1], "2.json": b'{"text": ["a b", "z"]}'},
    )
    write_shard(
        tmp_path / "shards" / "1.tar", {"./v1.0/1.webp": contents[2], "./v1.0/1.TXT": b"a c", "./v1.0/1.json": b"[1]"}
    )
    for path in ("shards", "shards/*.tar"):
        source = WebDatasetShards(str(tmp_path / path))
        assert source.captions() == ["an a", "a b", "a c"] and source.all_captions()[1] == ["a b", "z"]
        assert [source[i].image.width for i in (2, 0, 1)] == [42, 40, 41]
    with pytest.raises(ValueError, match="data.path=.*nowhere: "):
        WebDatasetShards(str(tmp_path / "nowhere"))
    write_shard(tmp_path / "bare.tar", {"1.webp": contents[2]})
    with pytest.raises(ValueError, match="no caption for 1.webp"):
        WebDatasetShards(str(tmp_path / "bare.tar"))
    (tmp_path / "broken.tar").write_bytes(b"no")
    with pytest.raises(ValueError, match="broken.tar: "):
        WebDatasetShards(str(tmp_path / "broken.tar"))


def test_hub_dataset_with_other_column_names(image_folder, tmp_path, monkeypatch):  # S2-07
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"file_name": name, "title": caption} for name, caption in ROWS]
    (image_folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = HuggingFaceDataset(str(image_folder), caption_column="title")
    assert sorted(source.captions()) == sorted(caption for _, caption in ROWS) and len(source) == 3
    assert (
        source[0].image.mode == "RGB"
        and len(HuggingFaceDataset(str(image_folder), caption_column="title", limit=2)) == 2
    )
    with pytest.raises(ValueError, match="data.caption_column=text: the dataset has image, title"):
        HuggingFaceDataset(str(image_folder))
    with pytest.raises(ValueError, match="data.name=nobody/nothing: "):
        HuggingFaceDataset("nobody/nothing")


def test_sizes_of_shards_are_cached(image_folder, tmp_path, monkeypatch):
    write_shard(tmp_path / "a.tar", {"1.png": (image_folder / "a.jpg").read_bytes(), "1.txt": b"an a"})
    source, decoded, load_image = WebDatasetShards(str(tmp_path / "a.tar")), [], WebDatasetShards.load_image
    monkeypatch.setattr(WebDatasetShards, "load_image", lambda s, i, size: decoded.append(i) or load_image(s, i, size))
    assert source.sizes() == source.sizes() == [(40, 32)] and source.digest(0) == source.digest(0)
    assert decoded == [0]


def test_json_lines_may_contain_other_line_separators(image_folder):
    rows = [{"file_name": name, "text": caption + "\u2028 more"} for name, caption in ROWS]
    (image_folder / "metadata.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert captions_by_name(ImageFolder(str(image_folder)))["a.jpg"] == "an a\u2028 more"


def test_unreadable_files_are_not_cached(image_folder, monkeypatch):
    content = (image_folder / "a.jpg").read_bytes()
    times = (image_folder / "a.jpg").stat()
    (image_folder / "a.jpg").write_bytes(b"\0" * len(content))
    os.utime(image_folder / "a.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(ImageFolder(str(image_folder), caption="a thing", on_error="skip")) == 2
    (image_folder / "a.jpg").write_bytes(content)
    os.utime(image_folder / "a.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(ImageFolder(str(image_folder), caption="a thing", on_error="skip")) == 3


def test_report_has_the_buckets_of_training_images_only(image_folder, tiny):  # pitfall 25
    model = tiny()
    training, held_out = split_validation(ImageFolder(str(image_folder), caption="a thing"), 1)
    sizes = DataSettings(32).choose_target_sizes(training, model.size_multiple)
    stats = build_dataset_report(training, sizes, 1, model.tokenizer, model.chunk_length).stats
    assert len(stats["image buckets"]) == 2 and not set(held_out.file_records().names) & set(stats["image buckets"])


def test_two_images_of_one_stem_use_the_same_mask(image_folder):
    Image.new("RGB", (40, 32)).save(image_folder / "a.png")
    Image.new("L", (40, 32), 255).save(image_folder / "a.mask.png")
    assert len(ImageFolder(str(image_folder), caption="a thing").masks) == 2


def test_report_finds_duplicates_upscaled_images_and_truncated_captions(image_folder, tiny):
    first = Image.open(image_folder / "a.jpg").convert("RGB")
    first.save(image_folder / "copy.jpg", quality=95)
    brighter = first.point(lambda value: min(255, value + 3))
    brighter.save(image_folder / "brighter.png")
    (image_folder / "same.png").write_bytes((image_folder / "c.webp").read_bytes())
    source, model = ImageFolder(str(image_folder), caption="a thing " * 30), tiny()
    sizes = [(64, 64)] * len(source)
    report = build_dataset_report(source, sizes, 6, model.tokenizer, model.chunk_length)
    assert report.stats["identical images"] == [["c.webp", "same.png"]]
    assert {frozenset(pair) for pair in report.stats["near-duplicate images"]} >= {frozenset(("a.jpg", "copy.jpg"))}
    assert report.stats["upscaled images"] == 6 and report.stats["truncated captions"] == 6
    assert len(report.warnings) == 4 and report.stats["frequent words"] == {"thing": 180}
    assert ContactSheet(source, sizes).draw().width == 1200
    assert (compute_dhash(first) ^ compute_dhash(brighter)).bit_count() <= 3


def test_jpeg_is_decoded_at_reduced_resolution(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    Image.effect_noise((1600, 1200), 50).convert("RGB").save(tmp_path / "p" / "a.jpg")
    source = ImageFolder(str(tmp_path / "p"), caption="a thing")
    assert source.sizes() == [(1600, 1200)] and source[0].image.size == (1600, 1200)
    assert source.load_image(0, (256, 192)).image.size == (400, 300)


def test_files_are_opened_again_only_after_a_change(image_folder, monkeypatch):
    opened, image_open = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, *args, **kwargs: opened.append(str(file)) or image_open(file, *args, **kwargs)
    )
    for count in (3, 0):
        opened.clear()
        ImageFolder(str(image_folder), caption="a thing")
        assert len(opened) == count
    Image.new("RGB", (50, 50)).save(image_folder / "c.webp")
    opened.clear()
    assert ImageFolder(str(image_folder), caption="a thing").sizes()[-2:] == [(50, 50), (41, 32)] and len(opened) == 1


def test_rows_of_one_image_are_its_captions(image_folder):
    rows = [*ROWS, ("a.jpg", "another"), ("a.jpg", "an a")]
    (image_folder / "metadata.csv").write_text("file_name,text\n" + "\n".join(map(",".join, rows)))
    assert ImageFolder(str(image_folder)).all_captions() == [["an a", "another"], ["a c"], ["a b"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a.jpg","an a\nsub/b.PNG,a b\nc.webp,a c', r"metadata.csv:4: .* \(unexpected end of data\)"),
        ("a.jpg,an \0a", r"metadata.csv:2: text is .* null bytes"),
    ],
)
def test_unclosed_quotes_and_null_bytes_are_refused(image_folder, text, message):
    (image_folder / "metadata.csv").write_text(f"file_name,text\n{text}")
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(image_folder))

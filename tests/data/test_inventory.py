"""Every file of a data folder is used, or named with the reason why it is not."""

import json
import os
import sys
import tarfile
import unicodedata

import pytest
from PIL import Image

from sdft.data import captions, folder_listing
from sdft.data.dataset_report import build_dataset_report
from sdft.data.image_folder import ImageFolder
from sdft.data.training_dataset import DataSettings
from sdft.data.webdataset import WebDatasetShards
from sdft.runs.terminal import print_text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "p"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        add_image(folder / name, "a thing")
    return folder


def add_image(file, caption: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(file, format="PNG")
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)


def list_unused(folder, **options) -> dict[str, list[str]]:
    return ImageFolder(str(folder), **options).inventory().unused


def test_an_ordinary_folder_has_nothing_unused(folder):
    inventory = ImageFolder(str(folder)).inventory()
    assert inventory.used == {"captions from text files": 2} and not inventory.unused and not inventory.notes


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.caption", folder_listing.OTHER_CAPTIONS),
        ("a.json", folder_listing.OTHER_CAPTIONS),
        ("a.png.txt", folder_listing.SUFFIXED_CAPTIONS),
        ("A.txt", folder_listing.OTHER_CASE_CAPTIONS),
        ("c.txt", folder_listing.ORPHAN_CAPTIONS),
        ("sub/metadata.jsonl", folder_listing.OTHER_TABLES),
        ("c.PSD", folder_listing.OTHER_IMAGES),
        ("a.mask.jpg", folder_listing.OTHER_MASKS),
        (".a.txt", folder_listing.HIDDEN),
        ("notes.pdf", folder_listing.OTHER_FILES),
        ("a.TXT", folder_listing.OTHER_FORM),
    ],
)
def test_every_file_that_is_not_used_is_named_with_the_reason(folder, name, reason):
    (folder / "sub").mkdir()
    (folder / name).write_text("another thing")
    assert list_unused(folder) == {reason: [name]} and len(ImageFolder(str(folder))) == 2


def test_the_caption_of_an_image_that_is_not_read_is_not_named_twice(folder):
    (folder / "c.psd").write_text("")
    (folder / "c.txt").write_text("a thing")
    assert list_unused(folder) == {folder_listing.OTHER_IMAGES: ["c.psd"]}


def test_images_whose_names_are_almost_equal_are_named(folder):
    add_image(folder / "a.webp")
    add_image(folder / "B.png", "a B")
    source = ImageFolder(str(folder))
    notes = source.inventory().notes
    assert notes == {folder_listing.SHARED_STEM: ["a.png", "a.webp"], folder_listing.SIMILAR_NAMES: ["B.png", "b.png"]}
    assert source.captions() == ["a B", "a thing", "a thing", "a thing"]


def test_no_image_is_lost_to_another_unicode_form_without_a_line(folder):
    for form in ("NFC", "NFD"):
        add_image(folder / unicodedata.normalize(form, "\u00e9.png"), "an accent")
    assert [*list_unused(folder)] == [folder_listing.OTHER_FORM] * 1 and len(ImageFolder(str(folder))) == 3


def test_linked_folders_are_named_or_followed_once(folder, tmp_path):
    add_image(tmp_path / "outside" / "c.png", "a c")
    add_image(folder / "sub" / "d.png", "a d")
    os.symlink(tmp_path / "outside", folder / "more")
    os.symlink(tmp_path / "outside", folder / "again")
    os.symlink(folder, tmp_path / "outside" / "loop")
    os.symlink(".", folder / "self")
    os.symlink("sub", folder / "inner")
    assert list_unused(folder) == {folder_listing.LINKED_FOLDERS: ["again/", "inner/", "more/", "self/"]}
    source = ImageFolder(str(folder), follow_links=True)
    assert source.captions() == ["a thing", "a c", "a thing", "a d"]  # sorted: a.png, again/c.png, b.png, sub/d.png
    repeated = source.inventory().unused[folder_listing.REPEATED_FOLDERS]
    assert sorted(repeated) == ["again/loop/", "inner/", "more/", "self/"]


def test_linked_files_are_followed_by_choice(folder, tmp_path):
    add_image(tmp_path / "store" / "c.png", "a c")
    for name in ("c.png", "c.txt"):
        os.symlink(tmp_path / "store" / name, folder / name)
    with pytest.raises(ValueError, match=r"c\.png: .*data.follow_links=true.*c\.txt: "):
        ImageFolder(str(folder))
    assert len(ImageFolder(str(folder), on_error="skip")) == 2
    assert ImageFolder(str(folder), follow_links=True).captions()[2] == "a c"


def test_one_error_does_not_hide_the_others(folder, tmp_path):
    add_image(folder / "c.png", "a c")
    add_image(folder / "d.png")
    (folder / "d.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "c.png").write_bytes(b"no")
    os.symlink("nowhere.png", folder / "gone.png")
    os.symlink("nowhere.txt", folder / "gone.txt")
    os.symlink(tmp_path / "x.txt", folder / "link.txt")
    (tmp_path / "x.txt").write_text("outside")
    os.mkfifo(folder / "pipe.png")
    (folder / "metadata.csv").write_text("file_name,text\na.png,a red, round thing\nb.png\nnone.png,x\n")
    names = ("c.png", "d.txt", "gone.png", "gone.txt", "link.txt", "pipe.png", "metadata.csv:2", "csv:3", "csv:4")
    with pytest.raises(ValueError) as refusal:
        ImageFolder(str(folder))
    assert all(f"{name}: " in str(refusal.value) for name in names)
    source = ImageFolder(str(folder), on_error="skip")
    assert len(source) == 2 and all(f"{name}: " in "; ".join(source.skipped_files()) for name in names)


def test_a_folder_without_readable_images_names_what_it_has(tmp_path):
    (tmp_path / "a.psd").write_text("")
    with pytest.raises(ValueError, match=r"data.path=.*no images; .*a\.psd"):
        ImageFolder(str(tmp_path))
    add_image(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("a thing")
    with pytest.raises(ValueError, match=r"no caption for a\.png; .*a\.caption"):
        ImageFolder(str(tmp_path))


LINES = "a barn,\n\n  in oil \nin oil\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("first", ["a barn,"]),
        ("random", ["a barn,", "in oil"]),
        ("all", ["a barn,", "in oil"]),
        ("join", ["a barn, in oil in oil"]),
    ],
)
def test_the_lines_of_a_caption_file_are_used_by_choice(folder, lines, expected):
    (folder / "a.txt").write_text(LINES)
    source = ImageFolder(str(folder), caption_lines=lines)
    assert source.all_captions() == [expected, ["a thing"]]
    assert source.inventory().unused == ({captions.LATER_LINES: ["a.txt (2 more)"]} if lines == "first" else {})


def test_all_lines_are_used_in_turn_and_random_ones_drawn_by_sample_number(folder, tiny):
    (folder / "a.txt").write_text(LINES)
    used = {}
    for lines in ("random", "all"):
        samples = DataSettings(16).build_dataset(ImageFolder(str(folder), caption_lines=lines), tiny())
        used[lines] = [
            [texts.tolist() for texts in samples.tokenizer(samples.captions[0])].index(
                samples.draw_caption(0, number).tolist()
            )
            for number in range(20)
        ]
    assert used["all"] == [0, 0, 1, 1] * 5 and 4 < sum(used["random"]) < 16 and used["random"] != used["all"]


def test_the_report_says_how_many_images_each_caption_source_gave(folder, tiny):
    add_image(folder / "c.png", " \n")
    add_image(folder / "d.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from the table"}')
    source, model = ImageFolder(str(folder), default_caption="none"), tiny()
    assert source.captions() == ["from the table", "a thing", "none", "none"]
    report = build_dataset_report(source, [(8, 8)] * 4, 1, model.tokenizer, model.chunk_length)
    assert report.stats["used"] == {
        "captions from metadata.jsonl": 1,
        "captions from text files": 1,
        "data.default_caption": 2,
    }
    assert report.stats["not used"] == {captions.REPLACED_TEXTS: ["a.txt"], captions.EMPTY_CAPTIONS: ["c.txt"]}
    text = "\n".join(report.lines)
    assert "2 images with data.default_caption" in text and "c.txt" in text and "a.txt" in text
    source = ImageFolder(str(folder), caption="one for all", default_caption="none")
    assert source.captions() == ["one for all"] * 4 and source.inventory().used == {"data.caption": 4}
    assert len(source.inventory().unused[captions.REPLACED_BY_OPTION]) == 4


def test_long_lists_are_cut_with_their_count(folder):
    for number in range(200):
        (folder / f"{number}.pdf").touch()
    inventory = ImageFolder(str(folder)).inventory()
    assert inventory.to_json()["not used"][folder_listing.OTHER_FILES][-1] == "and 100 more"
    assert any("other files (200): " in line and len(line) < 200 for line in inventory.format_lines())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_captions_are_read_in_unicode_encodings(folder, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (folder / "a.txt").write_bytes(f"{mark}a café\r\nmore".encode(encoding))
    assert ImageFolder(str(folder)).captions()[0] == "a café"


def test_options_with_other_values_are_refused(folder):
    with pytest.raises(ValueError, match="data.caption_lines=some: .*join"):
        ImageFolder(str(folder), caption_lines="some")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("csv", "file_name,text\na.png,x\n\nb.png,a red, round thing\n", 'csv:4: 3 fields.*quote.*","'),
        ("csv", "file_name;text\na.png;x\nb.png\n", "csv:3: 1 fields"),
        ("csv", 'file_name,text\na.png,"x\ny"\nb.png\n', "csv:4: 1 fields"),
        ("csv", "file_name,text,text\na.png,x,y\n", "csv:1: two columns are called 'text'"),
        ("jsonl", '{"file_name": "a.png", "text": "x", "text": "y"}', "jsonl:1: two columns are called 'text'"),
        ("jsonl", '{"file_name": "a.png"}\n{"file_name": "b.png"}', "jsonl:1: no file_name and text; .*and 1 more"),
        ("jsonl", '{"file_name": "a.png", "text": 1.5}\nno', "jsonl:1: text is 1.5.*jsonl:2: not a line of JSON"),
    ],
)
def test_rows_that_do_not_fit_the_header_are_refused_by_line(folder, name, text, message):
    (folder / f"metadata.{name}").write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(folder))


def test_parquet_with_equal_column_names_is_refused(folder):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = [arrow.array(["a.png"]), arrow.array(["x"]), arrow.array(["y"])]
    parquet.write_table(arrow.Table.from_arrays(columns, ["file_name", "text", "text"]), folder / "metadata.parquet")
    with pytest.raises(ValueError, match=r"metadata\.parquet: .*two columns are called 'text'"):
        ImageFolder(str(folder))


def test_rows_of_images_that_are_not_read_are_no_error(folder):
    (folder / "c.psd").write_text("")
    rows = [{"file_name": name, "text": "x"} for name in ("a.png", "b.png", "c.psd")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert ImageFolder(str(folder)).captions() == ["x", "x"]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_that_are_not_utf8_are_refused_with_their_escaped_name(folder):
    for name in (b"caf\xe9.png", b"caf\xe9.txt"):
        (folder / os.fsdecode(name)).write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(ValueError, match=r"caf\\udce9\.png: the name is not UTF-8"):
        ImageFolder(str(folder))
    source = ImageFolder(str(folder), on_error="skip")
    assert len(source) == 2 and len(source.skipped_files()) == 2
    (folder / os.fsdecode(b"h\xe9")).mkdir()
    (folder / os.fsdecode(b".h\xe9")).touch()
    json.dumps([source.skipped_files(), list_unused(folder, on_error="skip")], ensure_ascii=False).encode()
    with pytest.raises(ValueError, match="data.path=.*not UTF-8"):
        ImageFolder(str(folder / os.fsdecode(b"h\xe9")))


def test_control_characters_in_names_and_captions_do_not_reach_the_terminal(folder, capsys):
    add_image(folder / "c\x1b[31m.png", "a thing")
    (folder / "d\x1b]0;x\x07.caption").write_text("a thing")
    (folder / "metadata.jsonl").write_text('{"file_name": "gone\\u001b.png", "text": "x"}')
    source = ImageFolder(str(folder), on_error="skip")
    for line in [*source.inventory().format_lines(), *source.skipped_files(), "\x1b[2J\u202e a\nb"]:
        print_text(line)
        print_text(line, file=sys.stderr)
    printed = "".join(capsys.readouterr())
    assert "\\x1b[2J\\u202e a\\nb" in printed and printed.replace("\n", "").isprintable()


def test_a_null_byte_in_a_shard_names_the_caption(folder, tmp_path):
    (folder / "a.txt").write_bytes(b"a\0thing")
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        for name in ("a.png", "a.txt"):
            shard.add(folder / name, name)
    with pytest.raises(ValueError, match=r"x\.tar: .*a\.txt: .*null bytes"):
        WebDatasetShards(str(tmp_path))

# ruff: noqa: E501
"""Five hundred malformed tables and captions: they give usable captions, or a one-line error that names the file."""

import contextlib
import csv
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdft.cli.errors import format_error, is_user_error
from sdft.data.image_folder import ImageFolder

NAMES = ["a.png", "b.png", "sub/c.png"]
ODD_NAMES = [
    "a.png", "b.png", "sub/c.png", "sub\\c.png", "./a.png", "../secret.png", "/etc/passwd", "sub/../a.png", "A.PNG", "a",
    "", " ", ".", "..", "a.png\0", "a.png\n", "a.png ", "é.png", "\ud800.png", "x" * 3000, 5, -1, 2.5, None, True, [], {},
    ["a.png"], {"a": "b.png"}, "http://x/a.png", "nope.png", "~/a.png", "a.txt", "metadata.csv", "{caption}", "%s", "1e5",
]  # fmt: skip
ODD_CAPTIONS = [
    "a thing", "", " ", "\n", "\t", "\0", "a\0b", "\ud800", "a \udcff b", "\ufeff", "é 日本 🙂", "‮abc", "x" * 200_000, "a;b\tc,d",
    '"', '""', "'", "a\nb", "a\r\nb", "\x1b[31mred", "{caption}", "{0}", "%s", "null", "<b>", "</script>",
    None, True, False, 0, 7, -1, 1.5, float("nan"), float("inf"), [], [None], ["a", "b"], ["a", 5], [["a"]], [{}], {}, {"a": "b"},
    [" "], 10**30,
]  # fmt: skip
ODD_LINES = [
    "{", "}", "[", "]", "[]", "{}", "null", "5", '"text"', "nan", "{a:1}", "{'a': 1}", '{"file_name": "a.png"', "[" * 100_000,
    '{"a":' * 50_000, "1" * 5000, '{"file_name": "a.png", "text": "a",}', "//", "a.png,a thing", '{"file_name": "a.png"}',
    '{"text": "a"}', '["a.png", "a"]', '{"file_name": "a.png", "text": "a"} {}', "\0", "\x1a", "\ufeff{}", '{"file_name": 1e999, "text": "a"}',
    '{"": 1}', '{"file_name": "a.png", "text": "\\ud800"}', '{"text": "x", "file_name": "b.png", "text": "y"}', " ", "\u2028", "\x85",
    '{"file_name": "a.png", "text": ' + "9" * 5000 + "}",
]  # fmt: skip
HEADS = [
    "file_name,text", "file_name;text", "file_name\ttext", "file_name|text", "text,file_name", "file_name", "text", "", ",", ";;;",
    "file_name,text,text", '"file_name","text"', '"file_name,text', "file_name,text,extra", "\ufefffile_name,text", " file_name, text",
    "FILE_NAME,TEXT", "file_name,text\0", "a.png,a thing", "file name;the text", "file_name,,text",
]  # fmt: skip
WRONG = ("nan", "inf", "None", "{}", "1.5")  # how Python prints values that are not text
OPTIONS = [
    {},
    {},
    {},
    {"default_caption": "a thing"},
    {"on_error": "skip"},
    {"image_column": "file", "caption_column": "title"},
]


def draw_rows(rng: random.Random) -> list[tuple]:
    """Mostly valid rows."""
    count = rng.choice([0, 1, 3, 3, 3, 5, 40])
    rows = [(rng.choice(NAMES), f"thing {i}") for i in range(count)]
    for _ in range(rng.randrange(3) if rows else 0):
        index = rng.randrange(count)
        name, caption = rows[index]
        rows[index] = (rng.choice(ODD_NAMES), caption) if rng.random() < 0.4 else (name, rng.choice(ODD_CAPTIONS))
    return rows


def draw_jsonl(rng: random.Random) -> bytes:
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in draw_rows(rng)]
    for _ in range(rng.randrange(3)):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(ODD_LINES))
    return rng.choice(["\n", "\n", "\r\n", "\n\n", "\r", ""]).join(lines).encode("utf-8", "surrogatepass")


def draw_csv(rng: random.Random) -> bytes:
    text, delimiter = io.StringIO(newline=""), rng.choice(",,,;\t|")
    pairs = [
        (name, caption) for name, caption in draw_rows(rng) if "\0" not in f"{name}{caption}" or rng.random() < 0.5
    ]
    csv.writer(text, delimiter=delimiter, lineterminator=rng.choice(["\n", "\r\n", "\r"])).writerows(pairs)
    lines = [rng.choice(HEADS), *text.getvalue().split("\n")]
    for _ in range(rng.randrange(3)):
        odd = [
            '"',
            '"a.png',
            'a.png,"a" b',
            "a.png",
            "a.png;x;y;z",
            "a.png,x,y,z",
            ",",
            '"""',
            "a.png,'x",
            "\0",
            "a.png," + "x" * 200_000,
        ]
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(odd))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def draw_parquet(rng: random.Random) -> bytes:
    columns = list(zip(*draw_rows(rng), strict=True)) or [[], []]
    file = io.BytesIO()
    for kind in (None, pa.string(), pa.binary()):
        arrays = []
        for column in columns:
            values = (
                list(column)
                if kind is None
                else [str(v if isinstance(v, str | int) else "c").encode("utf-8", "replace") for v in column]
            )
            with contextlib.suppress(pa.ArrowException, UnicodeError, OverflowError):
                arrays.append(pa.array(values, type=kind))
        if len(arrays) == 2 and (kind is not None or rng.random() < 0.5):
            names = rng.choice([["file_name", "text"]] * 4 + [["file_name", "file_name"], ["a", "b"], ["", "text"]])
            with contextlib.suppress(pa.ArrowException):  # types that parquet cannot store
                pq.write_table(pa.table(arrays, names=names), file)
                break
    return file.getvalue()


def corrupt(content: bytes, rng: random.Random) -> bytes:
    """Truncate, overwrite or re-encode the content of some files."""
    position, kind = rng.randrange(len(content) + 1), rng.randrange(14)
    if kind == 0:
        return content[:position]
    if kind == 1:
        return content[:position] + bytes(rng.randrange(256) for _ in range(8)) + content[position + 8 :]
    if kind == 2:
        return content.decode("utf-8", "replace").encode(
            rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]), "replace"
        )
    if kind == 3:
        return rng.choice(
            [
                b"",
                b" ",
                b"\n\n",
                b"\0" * 100,
                b"\xef\xbb\xbf",
                b"\xff\xfe",
                b"PAR1",
                b"PAR1PAR1",
                b"\x1f\x8b",
                b"PK\3\4",
            ]
        )
    return b"\xef\xbb\xbf" + content if kind == 4 else content


KINDS = {"metadata.jsonl": draw_jsonl, "metadata.csv": draw_csv, "metadata.parquet": draw_parquet}


def write_files(folder, rng: random.Random) -> list[str]:
    """Write the files of one case; returns their names."""
    names = rng.choices([*KINDS, "a.txt"], [5, 5, 3, 2])
    if rng.random() < 0.05:
        names.append("metadata.csv" if names[0] != "metadata.csv" else "metadata.jsonl")
    for name in names:
        content = KINDS[name](rng) if name in KINDS else str(rng.choice(ODD_CAPTIONS)).encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(corrupt(content, rng))
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metadata") / "images"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.effect_noise((16 + number, 16), 60).convert("RGB").save(folder / name)
    return folder


def find_error(number: int, folder) -> str | None:
    """Return why case `number` is handled wrongly, or None."""
    rng = random.Random(number)
    for file in [*folder.glob("metadata.*"), *folder.rglob("*.txt")]:
        file.unlink()
    names = write_files(folder, rng)
    try:
        source = ImageFolder(str(folder), **rng.choice(OPTIONS))
    except Exception as error:
        message = format_error(error)
        if not is_user_error(error) or len(message.splitlines()) != 1 or not message.isprintable():
            return f"{number} {names}: {type(error).__name__}: {message[:300]!r}"
        if not any(name in message for name in [*names, *NAMES]):
            return f"{number} {names}: names no file: {message[:300]!r}"
        return None if len(message) < 20_000 else f"{number} {names}: {len(message)} characters"
    captions = [text for texts in source.all_captions() for text in texts]
    bad = [
        text for text in captions if not text.strip() or "\0" in text or text.encode(errors="replace").decode() != text
    ]
    if names[0] in ("metadata.jsonl", "metadata.parquet"):
        bad += [text for text in captions if text.startswith(("{'", "[", "b'")) or text in WRONG]
    return f"{number} {names}: trains on {bad[0][:80]!r}" if bad else None


@pytest.mark.parametrize("first", range(0, 500, 100))
def test_malformed_metadata_is_read_or_refused_in_one_line_that_names_the_file(folder, monkeypatch, first):
    monkeypatch.chdir(folder.parent)
    assert not [error for number in range(first, first + 100) if (error := find_error(number, folder))]

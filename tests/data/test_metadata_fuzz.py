# ruff: noqa: E501
"""Five hundred tables and captions as broken tools write them: captions that can be learned, or one line that names the file."""

import contextlib
import csv
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdft.cli.entry_point import format_error, is_user_error
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
WRONG = ("nan", "inf", "None", "{}", "1.5")  # what Python calls things that are no text
OPTIONS = [
    {},
    {},
    {},
    {"caption": "a thing"},
    {"on_error": "skip"},
    {"image_column": "file", "caption_column": "title"},
]


def rows(chance: random.Random) -> list[tuple]:
    """Right for the most part."""
    count = chance.choice([0, 1, 3, 3, 3, 5, 40])
    found = [(chance.choice(NAMES), f"thing {i}") for i in range(count)]
    for _ in range(chance.randrange(3) if found else 0):
        place = chance.randrange(count)
        name, told = found[place]
        found[place] = (
            (chance.choice(ODD_NAMES), told) if chance.random() < 0.4 else (name, chance.choice(ODD_CAPTIONS))
        )
    return found


def jsonl(chance: random.Random) -> bytes:
    lines = [json.dumps({"file_name": name, "text": told}) for name, told in rows(chance)]
    for _ in range(chance.randrange(3)):
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(ODD_LINES))
    return chance.choice(["\n", "\n", "\r\n", "\n\n", "\r", ""]).join(lines).encode("utf-8", "surrogatepass")


def comma_separated(chance: random.Random) -> bytes:
    text, mark = io.StringIO(newline=""), chance.choice(",,,;\t|")
    told = [
        (name, caption) for name, caption in rows(chance) if "\0" not in f"{name}{caption}" or chance.random() < 0.5
    ]
    csv.writer(text, delimiter=mark, lineterminator=chance.choice(["\n", "\r\n", "\r"])).writerows(told)
    lines = [chance.choice(HEADS), *text.getvalue().split("\n")]
    for _ in range(chance.randrange(3)):
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
        lines.insert(chance.randrange(1, len(lines) + 1), chance.choice(odd))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def parquet(chance: random.Random) -> bytes:
    columns = list(zip(*rows(chance), strict=True)) or [[], []]
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
        if len(arrays) == 2 and (kind is not None or chance.random() < 0.5):
            names = chance.choice([["file_name", "text"]] * 4 + [["file_name", "file_name"], ["a", "b"], ["", "text"]])
            with contextlib.suppress(pa.ArrowException):  # of a type that files have not
                pq.write_table(pa.table(arrays, names=names), file)
                break
    return file.getvalue()


def spoiled(content: bytes, chance: random.Random) -> bytes:
    """As a full disk, another encoding or another program leaves it."""
    place, kind = chance.randrange(len(content) + 1), chance.randrange(14)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes(chance.randrange(256) for _ in range(8)) + content[place + 8 :]
    if kind == 2:
        return content.decode("utf-8", "replace").encode(
            chance.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]), "replace"
        )
    if kind == 3:
        return chance.choice(
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


KINDS = {"metadata.jsonl": jsonl, "metadata.csv": comma_separated, "metadata.parquet": parquet}


def written(folder, chance: random.Random) -> list[str]:
    """Lay one list's files into the folder; returns their names."""
    names = chance.choices([*KINDS, "a.txt"], [5, 5, 3, 2])
    if chance.random() < 0.05:
        names.append("metadata.csv" if names[0] != "metadata.csv" else "metadata.jsonl")
    for name in names:
        told = (
            KINDS[name](chance) if name in KINDS else str(chance.choice(ODD_CAPTIONS)).encode("utf-8", "surrogatepass")
        )
        (folder / name).write_bytes(spoiled(told, chance))
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metadata") / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.effect_noise((16 + number, 16), 60).convert("RGB").save(folder / name)
    return folder


def fault(number: int, folder) -> str | None:
    """What is wrong with how list `number` is taken."""
    chance = random.Random(number)
    for file in [*folder.glob("metadata.*"), *folder.rglob("*.txt")]:
        file.unlink()
    names = written(folder, chance)
    try:
        source = ImageFolder(str(folder), **chance.choice(OPTIONS))
    except Exception as error:
        told = format_error(error)
        if not is_user_error(error) or len(told.splitlines()) != 1 or not told.isprintable():
            return f"{number} {names}: {type(error).__name__}: {told[:300]!r}"
        if not any(name in told for name in [*names, *NAMES]):
            return f"{number} {names}: names no file: {told[:300]!r}"
        return None if len(told) < 20_000 else f"{number} {names}: {len(told)} letters"
    captions = [text for texts in source.all_captions() for text in texts]
    bad = [
        text for text in captions if not text.strip() or "\0" in text or text.encode(errors="replace").decode() != text
    ]
    if names[0] in ("metadata.jsonl", "metadata.parquet"):
        bad += [text for text in captions if text.startswith(("{'", "[", "b'")) or text in WRONG]
    return f"{number} {names}: learns {bad[0][:80]!r}" if bad else None


@pytest.mark.parametrize("first", range(0, 500, 100))
def test_odd_metadata_is_read_right_or_refused_in_one_line_that_names_the_file(folder, monkeypatch, first):
    monkeypatch.chdir(folder.parent)
    assert not [told for number in range(first, first + 100) if (told := fault(number, folder))]

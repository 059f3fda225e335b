"""Read prompts and captions from lists and text files."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

MAX_PROMPT_CHARS = 10_000
MAX_CAPTION_CHARS = 100_000
MAX_TEXT_BYTES = 2**20  # of a text file
MAX_LINE_CHARS = 2**20  # of a table


def read_prompts(prompts, key: str = "prompts") -> list[str]:
    """Return a list of prompts, the lines of a text file, or [] for None. `key` names the option in errors.

    Empty lines of a file and lines that start with `#` are no prompts.
    """
    if prompts is None:
        return []
    if isinstance(prompts, str):
        file = Path(prompts).expanduser()
        if not file.is_file():
            raise ValueError(f"{key}={prompts}: no such text file; give one, or a list such as '{key}=[a cat,a dog]'")
        lines = [line.strip() for line in read_text(file).splitlines()]
        if not (lines := [line for line in lines if line and not line.startswith("#")]):
            raise ValueError(f"{key}={prompts}: the file has no prompt; write one per line")
        return lines
    if not (isinstance(prompts, list) or OmegaConf.is_list(prompts)):
        raise ValueError(f"{key}={prompts}: give a text file, or a list such as '{key}=[a cat,a dog]'")
    return [str(prompt) for prompt in prompts]


def read_text(file: Path) -> str:
    """Read UTF-8 text, or UTF-16 with a byte-order mark; raises `ValueError` naming the file for another encoding or size."""
    with file.open("rb") as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{file}: more than {MAX_TEXT_BYTES} bytes; a text file may have at most that")
    try:
        text = content.decode(detect_encoding(content[:4]))
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text file of any size; raises `ValueError` like `read_text`, also for a very long line."""
    with file.open("rb") as stream:
        encoding = detect_encoding(stream.read(4))
    try:
        with file.open(encoding=encoding) as stream:
            while line := stream.readline(MAX_LINE_CHARS + 1):
                if len(line) > MAX_LINE_CHARS:
                    raise ValueError(f"{file}: a line of more than {MAX_LINE_CHARS} characters; break it up")
                yield line
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text; save it as UTF-8") from None


def detect_encoding(start: bytes) -> str:
    """Encoding of a text by its byte-order mark."""
    is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and start != codecs.BOM_UTF32_LE
    return "utf-16" if is_utf16 else "utf-8-sig"

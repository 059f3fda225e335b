"""Read prompts and captions from lists and text files."""

import codecs
from pathlib import Path

from omegaconf import OmegaConf

MAX_PROMPT_CHARS = 10_000


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
    """Read UTF-8 text, or UTF-16 with a byte-order mark; raises `ValueError` naming the file for another encoding."""
    with file.open("rb") as stream:
        start = stream.read(4)
    is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and start != codecs.BOM_UTF32_LE
    try:
        return file.read_text(encoding="utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text; save it as UTF-8") from None

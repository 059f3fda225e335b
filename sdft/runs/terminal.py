"""Text for the terminal: names, captions and metadata of others cannot steer it."""

import sys
from typing import TextIO


def escape_unprintable(text: str, keep: str = "") -> str:
    """Escape control characters, line breaks and surrogates, except those in `keep`."""
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def print_text(text: str, file: TextIO | None = None, flush: bool = False) -> None:
    """Print lines that may contain text of others."""
    print(escape_unprintable(text, keep="\n"), file=file or sys.stdout, flush=flush)


def is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8; names of files that are not UTF-8 have surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

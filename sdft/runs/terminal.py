"""Text for the terminal: names, captions and metadata of others cannot steer it."""

import sys
from typing import TextIO


def escape_unprintable(text: str) -> str:
    """Escape control characters, line breaks and surrogates."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def print_text(*lines: str, file: TextIO | None = None, flush: bool = False) -> None:
    """Print lines that may contain text of others, whose line breaks are escaped, too."""
    print("\n".join(map(escape_unprintable, lines)), file=file or sys.stdout, flush=flush)


def describe_error(error: BaseException, last: bool = False) -> str:
    """The first or `last` line of an error's message, or its class if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if last else 0]


def is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8; names of files that are not UTF-8 have surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

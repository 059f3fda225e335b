"""Text for the terminal."""


def escape_unprintable(text: str) -> str:
    """Escape control characters, line breaks and surrogates: names and captions of others cannot steer the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )

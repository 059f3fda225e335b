"""Inventory of a dataset: what was used, and what was seen but not used, with the reason."""

from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_EXAMPLES, MAX_LISTED = 3, 100  # names per line of the terminal, and per entry of data.json


@dataclass
class Inventory:
    """`used`: images by source of their captions; `notes`: used files that need a look; `unused`: files by reason."""

    used: dict[str, int] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    unused: dict[str, list[str]] = field(default_factory=dict)

    def add_note(self, text: str, name: str) -> None:
        self.notes.setdefault(text, []).append(name)

    def add_unused(self, reason: str, name: str) -> None:
        self.unused.setdefault(reason, []).append(name)

    def count_used(self, source: str) -> None:
        self.used[source] = self.used.get(source, 0) + 1

    def format_lines(self) -> Iterator[str]:
        """Lines for the terminal."""
        if self.used:
            yield f"used       {', '.join(f'{count} images with {source}' for source, count in self.used.items())}"
        for label, groups in (("note", self.notes), ("not used", self.unused)):
            for reason, names in groups.items():
                yield f"{label:<10} {format_group(reason, names)}"

    def to_json(self) -> dict:
        """Entries of data.json: counts of what was used; notes and unused files by reason, at most `MAX_LISTED` of each."""
        entries = {"used": self.used}
        for key, groups in (("notes", self.notes), ("not used", self.unused)):
            entries[key] = {
                reason: names
                if len(names) <= MAX_LISTED
                else [*names[:MAX_LISTED], f"and {len(names) - MAX_LISTED} more"]
                for reason, names in groups.items()
            }
        return entries


def format_group(reason: str, names: list[str]) -> str:
    return f"{reason} ({len(names)}): {format_list(names, limit=MAX_EXAMPLES)}"


def format_list(names: list[str], separator: str = ", ", limit: int = 5) -> str:
    """Join the first `limit` names, and say how many more there are."""
    more = f"{separator}and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more

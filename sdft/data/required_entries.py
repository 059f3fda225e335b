"""Cache entries that a run needs, by key: 48 bytes each, as there may be very many."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from sdft.data.tensor_cache import KEY_SIZE, KEY_TYPE

ROW_TYPE = np.dtype([("key", KEY_TYPE), ("arguments", "i4", 4)])


class RequiredEntries(Mapping):
    """Arguments of a computation by the key of its result. Of equal keys the first one counts.

    `rows` are keys with four integers, from which `get_arguments` restores the arguments.
    """

    def __init__(self, rows: Iterable[tuple[bytes, int, int, int, int]], get_arguments: Callable[..., tuple]):
        table = np.fromiter(((key, tuple(arguments)) for key, *arguments in rows), ROW_TYPE)
        self.rows = table[np.sort(np.unique(table["key"], return_index=True)[1])]
        self.order, self.get_arguments = np.argsort(self.rows["key"], kind="stable"), get_arguments

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[bytes]:
        return (key.ljust(KEY_SIZE, b"\0") for key in self.rows["key"])

    def __getitem__(self, key: bytes) -> tuple:
        place = np.searchsorted(self.rows["key"], np.array(key, KEY_TYPE), sorter=self.order)
        row = self.rows[self.order[min(place, len(self) - 1)]] if len(self) else None
        if row is None or row["key"] != key.rstrip(b"\0"):
            raise KeyError(key)
        return self.get_arguments(*row["arguments"].tolist())

"""The sum over the entries of a state, by which a header commits to all of them at once.

An entry is what may stand and go by itself: a step of a task, an inspection, an offer, what a contract
has written. Each is expanded to 2048 bits and the sum is kept modulo 2**2048, so that an entry comes,
changes and goes at the same price however many there are, and the order in which they came leaves no
trace. Work is put off until somebody asks: an entry that changes often in one block is hashed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import shake_128
from typing import Any

from edgepool.model.codec import encode

SUM_BYTES = 256
MAX_WAITING = 4096
"""How many changes may wait to be hashed while nobody asks, which bounds what they hold in memory."""

Key = tuple[str, str, Any]
"""Names an entry: its kind, whose it is, and what tells it from others of the same owner."""

Entry = tuple[object, ...]
"""What is hashed of an entry: its key, and then what it says."""

_DOMAIN = b"edgepool/1/entry\0"
_MASK = (1 << 8 * SUM_BYTES) - 1


class EntrySum:
    """The running sum. `entry_of` returns the entry of a key as it is, () if there is none.

    An entry begins with its key, so that no two entries are the same.
    """

    def __init__(self, entry_of: Callable[[Key], Entry]) -> None:
        self._entry_of = entry_of
        self._sum = 0
        self._before: dict[Key, bytes] = {}
        self._added: list[Entry] = []
        self._removed: list[Entry] = []

    def touch(self, key: Key) -> None:
        """Note that the entry of `key` is about to change, to come or to go."""
        if key not in self._before:
            self._before[key] = self._encoded(key)

    def add(self, entry: Entry) -> None:
        """Take in an entry that never changes."""
        self._added.append(entry)

    def remove(self, entry: Entry) -> None:
        """Take out an entry that never changed."""
        self._removed.append(entry)

    def relieve(self) -> None:
        """Settle what waits if that is much."""
        if len(self._before) + len(self._added) + len(self._removed) > MAX_WAITING:
            self.settle()

    def value(self) -> bytes:
        """Return the sum over all entries as they are, as SUM_BYTES bytes."""
        self.settle()
        return self._sum.to_bytes(SUM_BYTES, "big")

    def _encoded(self, key: Key) -> bytes:
        entry = self._entry_of(key)
        return encode(entry) if entry else b""

    def settle(self) -> None:
        """Hash all changes that wait."""
        total = self._sum
        for key, before in self._before.items():
            after = self._encoded(key)
            if after != before:
                total += (_expanded(after) if after else 0) - (_expanded(before) if before else 0)
        total += sum(_expanded(encode(entry)) for entry in self._added)
        total -= sum(_expanded(encode(entry)) for entry in self._removed)
        self._sum = total & _MASK
        self._before.clear()
        self._added.clear()
        self._removed.clear()


def _expanded(entry: bytes) -> int:
    return int.from_bytes(shake_128(_DOMAIN + entry).digest(SUM_BYTES), "big")

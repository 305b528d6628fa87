"""Which records a chain still knows by their ids: those of its last blocks [S3.9].

A record stands only while the height at which its author signed it is not below the horizon, so one that
was on the chain at or below the horizon cannot come again, and its id need not be remembered. The horizon
moves by what the chain holds, never by a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate

WINDOW_BLOCKS = 4096
"""How many blocks the window has at most."""
WINDOW_RECORDS = 65_536
"""How many records the blocks of the window have together at most."""


class RecordWindow:
    """The blocks above `horizon` with the `ids` of their records.

    A window that was made of a snapshot at some height knows no ids up to there, until they are recalled;
    `complete` says whether any are still unknown.
    """

    def __init__(self, horizon: int = 0, counts: Sequence[int] = ()) -> None:
        self.horizon = horizon
        self.ids: set[bytes] = set()
        self._blocks: deque[tuple[int, tuple[bytes, ...]]] = deque((count, ()) for count in counts)
        self._totals = deque(accumulate(counts))  # of records up to each block, from the first window's on
        self._total = sum(counts)
        self._dropped = 0
        self._ids_above = horizon + len(self._blocks)

    @property
    def complete(self) -> bool:
        """Say whether the ids of all records in the window are known."""
        return self._ids_above <= self.horizon

    @property
    def unknown_height(self) -> int:
        """The highest block whose ids are unknown, the next to be recalled; 0 if none is in the window."""
        return 0 if self.complete else self._ids_above

    @property
    def counts(self) -> tuple[int, ...]:
        """How many records each block of the window has, from the one above the horizon."""
        return tuple(count for count, _ in self._blocks)

    def records_above(self, height: int) -> int:
        """Return how many records the blocks above `height` have, those of the window at most."""
        place = height - self.horizon - 1
        if place >= len(self._totals):
            return 0
        return self._total - (self._totals[place] if place >= 0 else self._dropped)

    def recall(self, height: int, ids: tuple[bytes, ...]) -> None:
        """Know the ids of a block again, of which those of all later blocks are known.

        AssertionError if it is another one, or below the window.
        """
        assert self.horizon < height == self._ids_above, f"block {height} is not the next to be recalled"
        place = height - self.horizon - 1
        self._blocks[place] = (self._blocks[place][0], ids)
        self.ids.update(ids)
        self._ids_above -= 1

    def close(self, ids: tuple[bytes, ...]) -> list[tuple[int, int]]:
        """Take in the next block's ids; return height and count of each block that falls out."""
        self.ids.update(ids)
        self._blocks.append((len(ids), ids))
        self._total += len(ids)
        self._totals.append(self._total)
        gone: list[tuple[int, int]] = []
        while len(self._blocks) > WINDOW_BLOCKS or self._total - self._dropped > WINDOW_RECORDS:
            count, old = self._blocks.popleft()
            self._dropped = self._totals.popleft()
            self.ids.difference_update(old)
            self.horizon += 1
            gone.append((self.horizon, count))
        return gone

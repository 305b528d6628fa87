"""How long it takes to the other side and back, by numbered questions and their answers."""

from __future__ import annotations

_WEIGHT = 0.25


class RoundTrip:
    """A smoothed round-trip time; one question is under way at a time, a later one replaces it."""

    def __init__(self) -> None:
        self.ms: float | None = None
        self._number = -1
        self._asked_at_s = 0.0

    def asked(self, now_s: float) -> int:
        """Return the number of the question that goes out now."""
        self._number += 1
        self._asked_at_s = now_s
        return self._number

    def answered(self, number: int, now_s: float) -> None:
        """Take an answer; one to an older question says nothing, nor does a second one."""
        if number != self._number or not self._asked_at_s:
            return
        ms = 1000 * (now_s - self._asked_at_s)
        self._asked_at_s = 0.0
        self.ms = ms if self.ms is None else self.ms + _WEIGHT * (ms - self.ms)

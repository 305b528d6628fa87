"""Checking the signature of a record once, however often the record is shown."""

from __future__ import annotations

from edgepool.model.record import SignedRecord

MAX_VOUCHED = 4096
"""So many records are remembered."""


class Vouched:
    """Remembers records whose signatures hold, so that each is checked once however often it is shown."""

    def __init__(self) -> None:
        self._known: dict[bytes, SignedRecord] = {}

    def authentic(self, record: SignedRecord) -> bool:
        """Say whether the signature of `record` is its author's."""
        if self._known.get(record.signature) == record:  # cheaper than its id, which is a hash of all of it
            return True
        if not record.authentic():
            return False
        self._known[record.signature] = record
        if len(self._known) > MAX_VOUCHED:
            del self._known[next(iter(self._known))]
        return True

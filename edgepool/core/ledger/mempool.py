"""Records that wait for a block: bounded, and fair between authors.

No author can fill it alone, and blocks are filled from all authors in turn, so a station that writes
much delays itself and nobody else. Whether a record may stand is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from edgepool.model.ids import PeerId
from edgepool.model.record import SignedRecord

MIN_SHARE = 16
"""How many records every author may have waiting, however many authors share the mempool."""
DUPLICATE = "duplicate"
"""What `Mempool.add` says of a record that already waits."""


class Mempool:
    """At most `limit_records` waiting records, of which one author of `authors` holds its share."""

    def __init__(self, limit_records: int, authors: int) -> None:
        self._limit_records = limit_records
        self.share_among(authors)
        self._authors: dict[PeerId, dict[bytes, SignedRecord]] = {}
        self._author_of: dict[bytes, PeerId] = {}

    def share_among(self, authors: int) -> None:
        """Let so many authors share the room from now on; what waits already may stay."""
        self._share = max(MIN_SHARE, self._limit_records // max(1, authors))

    def add(self, signed: SignedRecord) -> str:
        """Take a record in and return ''; or return 'duplicate', or why there is no room for it."""
        record_id = signed.id
        author = signed.record.author
        if record_id in self._author_of:
            return DUPLICATE
        if len(self._author_of) >= self._limit_records:
            return f"the mempool is full: {self._limit_records} records wait, try again later"
        queue = self._authors.get(author, {})
        if len(queue) >= self._share:
            return f"{self._share} records of this author wait already, try again later"
        queue[record_id] = signed
        self._authors[author] = queue
        self._author_of[record_id] = author
        return ""

    def has(self, record_id: bytes) -> bool:
        """Say whether the record with this id waits."""
        return record_id in self._author_of

    def __len__(self) -> int:
        return len(self._author_of)

    def authored_by(self, peer: PeerId) -> tuple[SignedRecord, ...]:
        """Return the waiting records of one author, the oldest first."""
        return tuple(self._authors.get(peer, {}).values())

    def in_order(self) -> Iterator[SignedRecord]:
        """Yield all waiting records: one of each author in turn, each author's in order of arrival.

        It yields what waited when it was called; records may be added and discarded meanwhile.
        """
        queues = [tuple(queue.values()) for queue in self._authors.values()]
        return (signed for turn in zip_longest(*queues) for signed in turn if signed is not None)

    def discard(self, record_ids: Iterable[bytes]) -> None:
        """Drop the records with these ids; ids that do not wait are passed over."""
        for record_id in record_ids:
            author = self._author_of.pop(record_id, None)
            if author is None:
                continue
            queue = self._authors[author]
            del queue[record_id]
            if not queue:
                del self._authors[author]

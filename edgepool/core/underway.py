"""Records of this peer's owner that are on their way to being final on one chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgepool.core.machine import Effect, Failed, Notify
from edgepool.model.ids import PeerId
from edgepool.model.record import SignedRecord

RESEND_MS = 1_000
"""How long a record may wait, with no block committed, before it is sent to the members again."""


@dataclass(slots=True)
class _Entry:
    """One record: whom to tell (0 is nobody), when to send it again, who has refused it."""

    ticket: int
    signed: SignedRecord
    resend_at_ms: int
    refused_by: list[PeerId] = field(default_factory=list)


class Underway:
    """At most `limit` records, in the order in which they are due to be sent again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: dict[bytes, _Entry] = {}

    def __contains__(self, record_id: bytes) -> bool:
        return record_id in self._entries

    def __iter__(self) -> Iterator[SignedRecord]:
        return (entry.signed for entry in self._entries.values())

    @property
    def deadline(self) -> int | None:
        """When the next record is to be sent again, in monotonic ms."""
        first = next(iter(self._entries.values()), None)
        return None if first is None else first.resend_at_ms

    def problem(self) -> str:
        """Say why no further record can be taken, or return ''."""
        full = len(self._entries) >= self._limit
        return f"{self._limit} records of this peer wait already" if full else ""

    def add(self, ticket: int, signed: SignedRecord, now_ms: int) -> None:
        """Take a record; its outcome is told to `ticket`."""
        self._entries[signed.id] = _Entry(ticket, signed, now_ms + RESEND_MS)

    def due(self, now_ms: int) -> list[SignedRecord]:
        """Return the records to be sent again; their wait begins anew."""
        due: list[SignedRecord] = []
        for record_id, entry in tuple(self._entries.items()):
            if entry.resend_at_ms > now_ms:
                break
            entry.resend_at_ms = now_ms + RESEND_MS
            self._entries[record_id] = self._entries.pop(record_id)
            due.append(entry.signed)
        return due

    def block_committed(self, now_ms: int) -> None:
        """The chain moves: nothing needs to be sent again for a while."""
        for entry in self._entries.values():
            entry.resend_at_ms = now_ms + RESEND_MS

    def refused(self, record_id: bytes, peer: PeerId) -> int:
        """Note that `peer` refused a record; return how many members have by now."""
        entry = self._entries.get(record_id)
        if entry is None:
            return 0
        if peer not in entry.refused_by:
            entry.refused_by.append(peer)
        return len(entry.refused_by)

    def take(self, record_id: bytes) -> int:
        """End a record's way; return the ticket to be told, 0 if there is none."""
        entry = self._entries.pop(record_id, None)
        return 0 if entry is None else entry.ticket

    def fail(self, record_id: bytes, reason: str, *, refused: bool = True) -> list[Effect]:
        """End a record's way without success."""
        ticket = self.take(record_id)
        return [Notify(Failed(ticket, reason, refused=refused))] if ticket else []

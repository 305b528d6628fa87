"""What every receiver does with what comes: count it, hash it, and compare at the end."""

from __future__ import annotations

from blake3 import blake3

from edgepool.errors import Unavailable

MESSAGE_BYTES = 1024 * 1024


class Arrival:
    """One copy on its way: `size_bytes` with this BLAKE3 digest (hex) should come."""

    def __init__(self, size_bytes: int, digest: str) -> None:
        self._missing_bytes = size_bytes
        self._digest = digest
        self._hash = blake3()

    def take(self, piece: bytes | memoryview) -> bool:
        """Take a piece; say whether all has come."""
        view = memoryview(piece)
        self._hash.update(view)
        self._missing_bytes -= len(view)
        return self._missing_bytes <= 0

    def check(self) -> None:
        """Raise Unavailable unless all came and is right."""
        if self._missing_bytes or self._hash.hexdigest() != self._digest:
            raise Unavailable("other bytes came than were sent")

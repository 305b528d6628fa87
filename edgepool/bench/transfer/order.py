"""What a run is to measure, and how parts tell what they are at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgepool.bench.transfer.material import GIB, MIB

Tell = Callable[[str], None]
"""Is told what is being measured."""

LARGE_BYTES = 8 * GIB
LINK_MBPS = 20.0
"""What a holder's link carries: 20 MB/s, as in the case study [S3.16]."""


@dataclass(frozen=True, slots=True)
class Order:
    """How much is measured: bytes of a single copy, rounds of everything, seconds on slow links."""

    size_bytes: int = GIB
    rounds: int = 5
    large: bool = False
    link_s: float = 6.0
    files: int = 1000
    file_bytes: int = 10_000
    trips: int = 500

    @property
    def link_rounds(self) -> int:
        """How often something is repeated whose rate the link sets."""
        return min(3, self.rounds)


QUICK = Order(size_bytes=64 * MIB, rounds=2, link_s=1.0, files=100, trips=100)

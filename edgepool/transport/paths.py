"""By which path a link goes, directly or through a conduit, and what each of both costs."""

from __future__ import annotations

from dataclasses import dataclass

from edgepool.model.ids import PeerId
from edgepool.transport.link import Link

_KEPT = 1024


@dataclass(frozen=True, slots=True)
class LinkPath:
    """The path of a link: `conduit` is the name of the one that it goes through, '' for none.

    `direct_ms` and `conduit_ms` are the round-trip times that were measured last, directly and through a
    conduit; None where none was. The bytes are those of this link, frames and their headers. `road` is what
    the link goes over: "tls" or "libp2p".
    """

    conduit: str
    direct_ms: float | None
    conduit_ms: float | None
    bytes_sent: int
    bytes_received: int
    road: str = "tls"


class Paths:
    """Remembers what the links to each peer have cost on either path."""

    def __init__(self) -> None:
        self._measured: dict[tuple[PeerId, bool], float] = {}

    def remember(self, link: Link) -> None:
        """Keep what a link that ends has cost."""
        if link.round_trip.ms is not None:
            key = (link.peer, bool(link.conduit))
            self._measured.pop(key, None)
            self._measured[key] = link.round_trip.ms
            if len(self._measured) > _KEPT:
                del self._measured[next(iter(self._measured))]

    def of(self, link: Link) -> LinkPath:
        """Return the path of a link, with what the other one has cost."""
        now = {bool(link.conduit): link.round_trip.ms}
        direct, through = (
            ms if (ms := now.get(way)) is not None else self._measured.get((link.peer, way))
            for way in (False, True)
        )
        return LinkPath(link.conduit, direct, through, link.bytes_sent, link.bytes_received, link.road)

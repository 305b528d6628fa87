"""The part of a peer's status that is about paths: links, places at conduits, and what a conduit passes."""

from __future__ import annotations

import msgspec


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A link that stands. `conduit` is the name of the one that it goes through, '' if it is direct.

    `direct_ms` and `conduit_ms` are the round-trip times last measured on either path, None if never; the
    bytes are those of this link without transfers, which have connections of their own. `road` is what it
    goes over: "tls" or "libp2p". `certificate_until_ms` is when the certificate lapses that the other side
    has shown last, in ms since 1970 UTC, 0 where that is not known, and `certificate_days_left` the days
    until then. `organisation` is whose root has issued it.
    """

    peer: str
    name: str
    role: str
    machine_type: str
    up_ms: int
    conduit: str = ""
    direct_ms: float | None = None
    conduit_ms: float | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    road: str = "tls"
    certificate_until_ms: int = 0
    certificate_days_left: float = 0.0
    organisation: str = ""


class Libp2pStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The libp2p child of a peer: whether it runs, how often it was started again, what it has and uses.

    `accepted` counts the inbound connections of its present life; as a relay it gives so many places, has so
    many circuits open, and has passed so many bytes.
    """

    running: bool
    restarts: int
    resident_bytes: int
    connections: int
    streams: int
    accepted: int
    places: int = 0
    circuits: int = 0
    passed_bytes: int = 0


class PlaceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A place at a conduit or a libp2p relay, by which others reach this peer.

    It is `kept`, or there is a `reason` why not.
    `round_trip_ms` is that to the conduit and back, a part of what every link through it takes.
    """

    peer: str
    name: str
    address: str
    kept: bool
    reason: str
    round_trip_ms: float | None


class PairStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a conduit has passed between two peers: `open` circuits of all so far, and bytes both ways."""

    peers: list[str]
    names: list[str]
    open: int
    circuits: int
    bytes: int


class ConduitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer does as a conduit: the names of those that keep a place, and what has passed."""

    places: list[str]
    circuits: int
    bytes: int
    pairs: list[PairStatus]

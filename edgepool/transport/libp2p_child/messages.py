"""What the parent and its libp2p child say to each other, each message in a frame of the one codec.

Streams are numbered: even by the parent, odd by the child. Each direction of a stream has a credit, so that
neither side ever holds more than WINDOW_BYTES of a stream for the other.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire
from edgepool.model.fields import MaybePeer, PeerText

WINDOW_BYTES = 256 * 1024
"""The credit of each direction of a new stream."""
CHUNK_BYTES = 64 * 1024
"""No Data carries more."""
MAX_MESSAGE_BYTES = CHUNK_BYTES + 1024

MAX_ADDRESSES = 8

StreamId = Annotated[int, Meta(ge=0, le=2**53)]
Size = Annotated[int, Meta(ge=0, le=2**31)]
AddressText = Annotated[str, Meta(max_length=512)]
Reason = Annotated[str, Meta(max_length=512)]
Protocol = Annotated[str, Meta(min_length=1, max_length=128)]
Milliseconds = Annotated[int, Meta(ge=1, le=2**31)]


class Begin(Wire, tag="begin", frozen=True):
    """To the child, first and once: the key's 32-byte seed, where to listen, and its bounds.

    `listen` are multiaddrs; `protocols` are those whose streams the parent takes. `memory_bytes` is what the
    child may use on top of what it has once everything is imported.
    """

    seed: Annotated[bytes, Meta(min_length=32, max_length=32)]
    listen: Annotated[tuple[AddressText, ...], Meta(max_length=MAX_ADDRESSES)]
    protocols: Annotated[tuple[Protocol, ...], Meta(max_length=16)]
    handshakes: Size
    connections: Size
    handshake_timeout_ms: Milliseconds
    keepalive_ms: Milliseconds
    memory_bytes: Annotated[int, Meta(ge=0, le=2**50)]
    events: bool
    relay: bool


class Dial(Wire, tag="dial", frozen=True):
    """To the child: open `stream` to a peer, over a connection that stands or one made to `address`."""

    stream: StreamId
    peer: PeerText
    address: AddressText
    protocol: Protocol
    timeout_ms: Milliseconds


class Proven(Wire, tag="proven", frozen=True):
    """To the child: this peer is a member; its connections no longer give way to newer ones."""

    peer: PeerText


class Disconnect(Wire, tag="disconnect", frozen=True):
    """To the child: end all connections with this peer."""

    peer: PeerText


class Reserve(Wire, tag="reserve", frozen=True):
    """To the child: take, or keep, a place at a relay, with which a connection stands."""

    peer: PeerText


class Publish(Wire, tag="publish", frozen=True):
    """To the child: tell this to all members that are connected and have subscribed to the topic."""

    topic: Annotated[str, Meta(min_length=1, max_length=128)]
    data: Annotated[bytes, Meta(min_length=1, max_length=CHUNK_BYTES)]


class LookAround(Wire, tag="look", frozen=True):
    """To the child: ask the local network by multicast DNS who is there, and tell it `addresses`.

    `host` is the IPv4 address of the interface to use; the addresses are multiaddrs with /p2p/PEER,
    also of its former keys, or none.
    """

    host: Annotated[str, Meta(max_length=64)]
    addresses: Annotated[tuple[AddressText, ...], Meta(max_length=MAX_ADDRESSES)]


class Beat(Wire, tag="beat", frozen=True):
    """To the child: are you well?"""

    count: StreamId


class Data(Wire, tag="data", frozen=True):
    """Bytes of a stream, within its credit."""

    stream: StreamId
    data: Annotated[bytes, Meta(min_length=1, max_length=CHUNK_BYTES)]


class Credit(Wire, tag="credit", frozen=True):
    """So many bytes of a stream have been passed on; as many more may be sent."""

    stream: StreamId
    size_bytes: Size


class Finish(Wire, tag="finish", frozen=True):
    """There is no more data in this direction of a stream."""

    stream: StreamId


class Reset(Wire, tag="reset", frozen=True):
    """A stream is over, both ways, or was never opened; what was under way is lost."""

    stream: StreamId
    reason: Reason


class Listening(Wire, tag="listening", frozen=True):
    """From the child: it is up, at these multiaddrs."""

    addresses: Annotated[tuple[AddressText, ...], Meta(max_length=MAX_ADDRESSES)]


class ListenFailed(Wire, tag="listen_failed", frozen=True):
    """From the child: it cannot listen, for this reason of the system (an errno)."""

    address: AddressText
    error_number: Size


class Accepted(Wire, tag="accepted", frozen=True):
    """From the child: `peer`, as Noise has proved, has opened a stream to us, through `relay` unless ''."""

    stream: StreamId
    peer: PeerText
    protocol: Protocol
    relay: MaybePeer


class Opened(Wire, tag="opened", frozen=True):
    """From the child: the stream that was asked for stands, through `relay` unless that is ''."""

    stream: StreamId
    relay: MaybePeer


class Met(Wire, tag="met", frozen=True):
    """From the child: where `stream` was to lead `peer` is instead, as Noise has proved; it is not opened."""

    stream: StreamId
    peer: PeerText


class Found(Wire, tag="found", frozen=True):
    """From the child: somebody on the local network says that this peer is at this multiaddr."""

    peer: PeerText
    address: AddressText


class Placed(Wire, tag="placed", frozen=True):
    """From the child: this peer has a place at `relay`, or has none for this reason."""

    relay: PeerText
    refusal: Reason


class Counted(Wire, tag="counted", frozen=True):
    """From the child: something was turned away, for a reason of refusals.py."""

    reason: Annotated[str, Meta(max_length=64)]


class Beating(Wire, tag="beating", frozen=True):
    """From the child: the answer to Beat, and what it has and uses now.

    `accepted` counts the inbound connections of its life so far, each of which leaks a little. The last three
    are what it does as a relay: places that it gives, circuits that are open, and bytes that have passed.
    """

    count: StreamId
    resident_bytes: Annotated[int, Meta(ge=0, le=2**50)]
    connections: Size
    streams: Size
    accepted: StreamId
    places: Size
    circuits: Size
    passed_bytes: Annotated[int, Meta(ge=0, le=2**53)]


ToChild = (
    Begin
    | Dial
    | Publish
    | Reserve
    | LookAround
    | Proven
    | Disconnect
    | Beat
    | Data
    | Credit
    | Finish
    | Reset
)
FromChild = (
    Listening
    | ListenFailed
    | Accepted
    | Opened
    | Met
    | Found
    | Placed
    | Counted
    | Beating
    | Data
    | Credit
    | Finish
    | Reset
)

"""What peers and a conduit say to each other, in frames over a connection of their own under mutual TLS.

A peer keeps a place (Reserve) or asks for a circuit to one that has (Ask). If it finds another key there than
the one it knows of, it asks first which keys the conduit had before (AskFormer). Both ends of a circuit are
given a token each, with which they come to the conduit's port once more over plain TCP: greeting.py has the
form. What then goes through is between the two of them.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire, decode
from edgepool.model.fields import PeerText, Text
from edgepool.model.lineage import MAX_LINE, Line
from edgepool.transport.greeting import TOKEN_BYTES

CIRCUIT_NAME = b"ep-circ1"
"""How a plain connection that is one end of a circuit begins (greeting.py)."""
MAX_FRAME_BYTES = 1024
MAX_ANSWER_BYTES = 8 * 1024
"""A conduit's frames are never longer; what it says of its former keys takes the most."""
LATE_PERIODS = 3
"""After so many keepalive periods without a word the other side is taken for dead."""

Token = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
Number = Annotated[int, Meta(ge=0, le=2**53)]


class Reserve(Wire, tag="reserve", frozen=True):
    """Peer to conduit: keep a place for me, and tell me when somebody asks for me."""


class Reserved(Wire, tag="reserved", frozen=True):
    """Conduit to peer: the answer to Reserve; `refusal` is '' or says why not."""

    refusal: Text


class Ask(Wire, tag="ask", frozen=True):
    """Peer to conduit: a circuit to `target`; `number` is the asker's own, to know the answer by."""

    number: Number
    target: PeerText


class Granted(Wire, tag="granted", frozen=True):
    """Conduit to peer: come with `token`; the target is told at the same time."""

    number: Number
    token: Token


class Declined(Wire, tag="declined", frozen=True):
    """Conduit to peer: there is no circuit, and why."""

    number: Number
    reason: Text


class Offered(Wire, tag="offered", frozen=True):
    """Conduit to peer: `peer` asks for you; come with `token` if you like. What it says proves nothing."""

    peer: PeerText
    token: Token


class Beat(Wire, tag="beat", frozen=True):
    """Peer to conduit: I am here."""

    count: Number


class BeatAnswer(Wire, tag="beat-answer", frozen=True):
    """Conduit to peer: so am I."""

    count: Number


class AskFormer(Wire, tag="ask-former", frozen=True):
    """Peer to conduit, once at most: which keys had you before?"""


class FormerKeys(Wire, tag="former-keys", frozen=True):
    """Conduit or relay to peer: the keys that it had before, the oldest first, up to its own."""

    line: Annotated[Line, Meta(max_length=MAX_LINE)]


FromPeer = Reserve | Ask | Beat | AskFormer
FromConduit = Reserved | Granted | Declined | Offered | BeatAnswer | FormerKeys
_FROM_PEER: type[FromPeer] = FromPeer  # type: ignore[assignment]
_FROM_CONDUIT: type[FromConduit] = FromConduit  # type: ignore[assignment]


def from_peer(frame: bytes) -> FromPeer:
    """Return what a peer says to a conduit; DecodeError if it is nothing that a peer says."""
    return decode(_FROM_PEER, frame, MAX_FRAME_BYTES)


def from_conduit(frame: bytes) -> FromConduit:
    """Return what a conduit says to a peer; DecodeError if it is nothing that a conduit says."""
    return decode(_FROM_CONDUIT, frame, MAX_ANSWER_BYTES)

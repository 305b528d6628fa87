"""Live streams on the wire: small samples from a publisher to its subscribers (docs/protocol/live.md).

A live stream is offered on chain like data, once. Its root says that it is one: it is the hash of who
publishes what, not that of a manifest. Each sample has a number, from 1 on in each epoch; an epoch is a
life of the stream at its publisher.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.errors import DecodeError, LocalError
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.crypto import data_hash
from edgepool.model.fields import Text, TimeMs
from edgepool.model.ids import PeerId
from edgepool.model.record import DataOffer, SignedRecord
from edgepool.model.twin import DataKey

MAX_SAMPLE_BYTES = 64 * 1024
MAX_BATCH_SAMPLES = 1024
BATCH_BYTES = 128 * 1024
"""A batch holds no more than this, as `cost_bytes` counts, but one sample always."""
MAX_FRAME_BYTES = 256 * 1024
MAX_WINDOW_BYTES = 64 * 1024 * 1024
SAMPLE_COST_BYTES = 64
"""What a sample counts beside its data, so that empty ones are not free."""

Epoch = Annotated[int, Meta(ge=0, le=2**53)]
Number = Annotated[int, Meta(ge=1, le=2**53)]


class Cursor(Wire, frozen=True):
    """Where a subscriber stands: sample `next` of `epoch` is what it takes next. Written 'EPOCH-NEXT'."""

    epoch: Epoch
    next: Number

    def __str__(self) -> str:
        return f"{self.epoch}-{self.next}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Return the cursor written as 'EPOCH-NEXT'; LocalError if it is none."""
        epoch, _, number = text.partition("-")
        for part in (epoch, number):
            if not (part.isascii() and part.isdigit() and len(part) <= 16 and int(part) <= 2**53):
                raise LocalError(f"'{text[:60]}' is no cursor: write it as a subscriber told it, EPOCH-NEXT")
        return cls(int(epoch), max(1, int(number)))


class LiveSample(Wire, frozen=True):
    """One sample: when its publisher put it, by its wall clock, and what."""

    time_ms: TimeMs
    data: Annotated[bytes, Meta(max_length=MAX_SAMPLE_BYTES)]

    @property
    def cost_bytes(self) -> int:
        """What this sample counts in buffers and credits."""
        return len(self.data) + SAMPLE_COST_BYTES


class LiveRequest(Wire, tag="follow", frozen=True):
    """First frame of a subscriber: its confirmation, where it stands, and how much it can take.

    `cursor` None begins with the next sample that is put, or with the oldest one that is held if `oldest`.
    """

    confirmation: SignedRecord
    cursor: Cursor | None
    oldest: bool
    credit_bytes: Annotated[int, Meta(ge=0, le=MAX_WINDOW_BYTES)]


class LiveCredit(Wire, tag="credit", frozen=True):
    """A subscriber can take so much in all since the connection began. Said again, it shows life."""

    total_bytes: Annotated[int, Meta(ge=0, le=2**53)]


class LiveRenewal(Wire, tag="renew", frozen=True):
    """A subscriber has another confirmation, which is valid for longer."""

    confirmation: SignedRecord


class LiveAccept(Wire, tag="live", frozen=True):
    """The publisher serves: the stream's epoch, and the number of the sample with which it begins."""

    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    start: Number


class LiveBatch(Wire, tag="batch", frozen=True):
    """Samples without a gap, the first of them numbered `first`; an empty batch shows life."""

    first: Number
    samples: Annotated[tuple[LiveSample, ...], Meta(max_length=MAX_BATCH_SAMPLES)]


class LiveEnd(Wire, tag="end", frozen=True):
    """The publisher sends nothing more; `refused` says that asking again would not help."""

    reason: Text
    refused: bool


FromSubscriber = LiveRequest | LiveCredit | LiveRenewal
FromPublisher = LiveAccept | LiveBatch | LiveEnd

_FROM_SUBSCRIBER: type[FromSubscriber] = FromSubscriber  # type: ignore[assignment]
_FROM_PUBLISHER: type[FromPublisher] = FromPublisher  # type: ignore[assignment]


def decode_from_subscriber(frame: bytes) -> FromSubscriber:
    """Return what a subscriber said; DecodeError if it is nothing that one says."""
    return decode(_FROM_SUBSCRIBER, frame, MAX_FRAME_BYTES)


def decode_from_publisher(frame: bytes) -> FromPublisher:
    """Return what a publisher said; DecodeError if it is nothing that one says."""
    found = decode(_FROM_PUBLISHER, frame, MAX_FRAME_BYTES)
    if isinstance(found, LiveBatch) and sum(sample.cost_bytes for sample in found.samples) > MAX_FRAME_BYTES:
        raise DecodeError("a batch that is too large")
    return found


def live_root(network: str, key: DataKey, publisher: PeerId) -> bytes:
    """Return the 32-byte root under which `publisher` offers the live stream `key`."""
    return data_hash(b"edgepool/1/live\0" + encode([network, key, publisher]))


def is_live(network: str, offer: DataOffer, publisher: PeerId) -> bool:
    """Say whether an offer is that of a live stream."""
    return offer.size_bytes == 0 and offer.root == live_root(network, offer.key, publisher)

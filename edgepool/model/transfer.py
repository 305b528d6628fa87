"""Messages of a transfer connection: how requester and holder agree on what is sent.

They travel as frames on a connection of its own, under mutual TLS 1.3 (ALPN edgepool-transfer/3). Many
transfers share one connection, told apart by the number that the requester gave each. Small data comes
inside the answer; larger data comes as sealed frames on a data connection (docs/protocol/transfer.md).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.errors import DecodeError
from edgepool.model.codec import Wire
from edgepool.model.fields import Hash, MaybeHash, Text
from edgepool.model.record import SignedRecord, TransmissionConfirmation
from edgepool.model.twin import MAX_CHUNKS, Manifest

SHARE_BYTES = 32
INLINE_BYTES = 64 * 1024
"""Data of at most this size comes inside the answer."""
MAX_BITMAP_BYTES = MAX_CHUNKS // 8
PLAIN = "plain"
"""The encoding of chunks that travel as they are."""
PACKED = "zstd"
"""The encoding of chunks that may be packed, each for itself, where that makes it smaller."""
MAX_BASES = 4
MAX_ITEMS = 128
"""One message asks for so many items of a bundle at most."""
AES_128_GCM = "aes-128-gcm"
CHACHA20_POLY1305 = "chacha20-poly1305"

TransferNumber = Annotated[int, Meta(ge=0, le=2**31)]
ChunkIndex = Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
MaybeShare = Annotated[bytes, Meta(max_length=SHARE_BYTES)]
Choices = Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=8)]
Bitmap = Annotated[bytes, Meta(max_length=MAX_BITMAP_BYTES)]


class TransferRequest(Wire, tag="open", frozen=True):
    """The requester asks for the data of a confirmation that the holder has countersigned.

    `share` is its half of the secret that the data connection's key is made of, empty if it knows that the
    data is small; `ciphers` and `encodings` are what it understands, best first. With `manifest` False it
    knows the manifest already.
    `bases` are the roots of other versions that it has, to be told only what differs from one of them.
    """

    transfer: TransferNumber
    confirmation: SignedRecord
    share: MaybeShare
    ciphers: Choices
    encodings: Choices
    manifest: bool
    bases: Annotated[tuple[Hash, ...], Meta(max_length=MAX_BASES)]


class TransferAccept(Wire, tag="yes", frozen=True):
    """The holder serves. Small data is in `data`, and that ends the transfer.

    Otherwise `share` is the holder's half of the secret, `cipher` and `encoding` are what it chose, and
    `have` is a bitmap of the chunks that it has so far (least significant bit first), empty for all.
    `base` is the version, of those that the requester has, from which packed chunks differ; empty for none.
    """

    transfer: TransferNumber
    manifest: Manifest | None
    share: MaybeShare
    cipher: Annotated[str, Meta(max_length=32)]
    encoding: Annotated[str, Meta(max_length=32)]
    have: Bitmap
    base: MaybeHash
    data: Annotated[bytes, Meta(max_length=INLINE_BYTES)]


class TransferRefusal(Wire, tag="no", frozen=True):
    """The holder will not serve, or no longer; the reason names the condition that failed."""

    transfer: TransferNumber
    reason: Text


class ChunkRequest(Wire, tag="chunks", frozen=True):
    """Send `count` chunks from `first` on; they come in the order in which they were asked for."""

    transfer: TransferNumber
    first: ChunkIndex
    count: Annotated[int, Meta(ge=1, le=MAX_CHUNKS)]


class TransferEnd(Wire, tag="end", frozen=True):
    """The requester wants no more of this transfer; `whole` if it has everything that it wanted.

    `wrong` is a chunk that came and was not what the manifest says: the holder looks whether its disk did it.
    """

    transfer: TransferNumber
    whole: bool
    wrong: ChunkIndex | None = None


class BundleRequest(Wire, tag="many", frozen=True):
    """The requester is about to ask for much small data, which comes on one data connection.

    `share` and `ciphers` are those of a TransferRequest. The answer is a TransferAccept with nothing but the
    holder's half of the secret and its choices.
    """

    transfer: TransferNumber
    share: MaybeShare
    ciphers: Choices


class ItemRequest(Wire, tag="items", frozen=True):
    """Send the data of these confirmations, each of at most INLINE_BYTES, in this order.

    Items are numbered from 0 on, in the order in which they were asked for in a bundle.
    """

    transfer: TransferNumber
    confirmations: Annotated[tuple[SignedRecord, ...], Meta(min_length=1, max_length=MAX_ITEMS)]


ToHolder = TransferRequest | ChunkRequest | TransferEnd | BundleRequest | ItemRequest
"""What a holder takes."""
ToRequester = TransferAccept | TransferRefusal
"""What a requester takes."""


def confirmation_of(record: SignedRecord) -> TransmissionConfirmation:
    """Return the confirmation inside `record`; DecodeError if it is another kind of record."""
    body = record.record.body
    if not isinstance(body, TransmissionConfirmation):
        raise DecodeError("a transfer must name a confirmation record")
    return body


def bitmap_of(chunks: set[int] | frozenset[int], count: int) -> bytes:
    """Return the bitmap of `chunks` out of `count`."""
    bits = bytearray((count + 7) // 8)
    for index in chunks:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def chunks_of(bitmap: bytes, count: int) -> frozenset[int]:
    """Return the chunks that a bitmap names; DecodeError if it has another length than `count` needs."""
    if len(bitmap) != (count + 7) // 8:
        raise DecodeError(f"a bitmap of {len(bitmap)} bytes for {count} chunks")
    return frozenset(index for index in range(count) if bitmap[index >> 3] >> (index & 7) & 1)

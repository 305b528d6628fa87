"""The data lane: sealed frames on a TCP connection of its own [S3.15].

One connection carries one transfer, from holder to requester, under a key that was never used before:
both sides give half of its secret over their connection under mutual TLS 1.3. It begins with the greeting's
token, which only they can make. Then come frames:

    chunk index (4 bytes), length of the content (4), flags (4)     as they are, authenticated
    content, sealed                                                 length + 16 bytes

The frame of a bundle holds whole items, each behind 4 bytes: its length, and the highest bit if it is the
reason of a refusal instead of data. The index is that of the first.

The nonce is the number of the frame, so none can be left out, repeated or moved; the header is what else
the seal covers. docs/decisions/0011-the-data-lane.md says what an attacker finds here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from edgepool.errors import DecodeError
from edgepool.model.codec import encode
from edgepool.model.transfer import AES_128_GCM, CHACHA20_POLY1305

LANE = b"edgelane"
"""The greeting's name of a data connection."""
FRAME_BYTES = 512 * 1024
"""The content of a frame is never longer."""
HEADER_BYTES = 12
SEAL_BYTES = 16
LAST = 1
"""The flag of the last frame of a chunk."""
PACKED = 2
"""The flag of all frames of a chunk that is packed (see packing.py)."""

_HEADER = struct.Struct(">III")
_NONCE = struct.Struct(">4xQ")
_ITEM = struct.Struct(">I")
_REFUSED = 1 << 31
ITEM_HEADER_BYTES = _ITEM.size
_KEY_BYTES = {AES_128_GCM: 16, CHACHA20_POLY1305: 32}


@lru_cache(maxsize=1)
def ciphers() -> tuple[str, ...]:
    """Return what this machine can do, best first: AES where the processor has instructions for it."""
    return (AES_128_GCM, CHACHA20_POLY1305) if _has_aes() else (CHACHA20_POLY1305,)


def choose(offered: tuple[str, ...]) -> str:
    """Return the cipher for a requester that offers these, or '' if there is none in common."""
    return next((cipher for cipher in ciphers() if cipher in offered), "")


class LaneKey:
    """What both sides of a data connection make of the two halves of their secret."""

    def __init__(
        self,
        cipher: str,
        halves: tuple[bytes, bytes],
        terms: list[Any],
    ) -> None:
        """`halves` are the requester's and the holder's; `terms` name this transfer and no other."""
        secret = encode([cipher, *halves, *terms])
        self.cipher = cipher
        self.token = blake3(secret, derive_key_context="edgepool/1 data lane token").digest()
        self._key = blake3(secret, derive_key_context="edgepool/1 data lane key, holder to requester").digest(
            _KEY_BYTES[cipher]
        )

    def aead(self) -> Any:
        """Return the cipher under this key; a key seals on one connection only."""
        return AESGCM(self._key) if self.cipher == AES_128_GCM else ChaCha20Poly1305(self._key)


class Sealer:
    """Makes the frames of one connection."""

    def __init__(self, key: LaneKey) -> None:
        self._aead = key.aead()
        self._number = 0
        self._frame = bytearray(HEADER_BYTES + FRAME_BYTES + SEAL_BYTES)
        self._view = memoryview(self._frame)

    def seal(self, index: int, content: memoryview, flags: int) -> memoryview:
        """Return the next frame; it is valid until the next call."""
        length = len(content)
        end = HEADER_BYTES + length + SEAL_BYTES
        _HEADER.pack_into(self._frame, 0, index, length, flags)
        nonce = _NONCE.pack(self._number)
        self._number += 1
        header, body = bytes(self._view[:HEADER_BYTES]), self._view[HEADER_BYTES:end]
        if hasattr(self._aead, "encrypt_into"):
            self._aead.encrypt_into(nonce, content, header, body)
        else:
            body[:] = self._aead.encrypt(nonce, content, header)
        return self._view[:end]


class Opener:
    """Checks and opens the frames of one connection, in order."""

    def __init__(self, key: LaneKey) -> None:
        self._aead = key.aead()
        self._number = 0

    def open(self, header: bytes, sealed: memoryview, content: memoryview) -> None:
        """Write what `sealed` holds to `content`, which has its length; DecodeError if the seal is broken."""
        nonce = _NONCE.pack(self._number)
        self._number += 1
        try:
            if hasattr(self._aead, "decrypt_into"):
                self._aead.decrypt_into(nonce, sealed, header, content)
            else:
                content[:] = self._aead.decrypt(nonce, sealed, header)
        except InvalidTag:
            raise DecodeError(f"frame {self._number - 1} is not the one that was sealed") from None


def put_item_header(frame: memoryview, place: int, size_bytes: int, refused: bool) -> None:
    """Write what stands before an item of a bundle: its size, and whether it is a reason instead of data."""
    _ITEM.pack_into(frame, place, size_bytes | (_REFUSED if refused else 0))


def items_of(content: memoryview) -> Iterator[tuple[memoryview, bool]]:
    """Return the items that a frame of a bundle holds, each with whether it is the reason of a refusal.

    DecodeError if the frame does not end where its last item does.
    """
    place = 0
    while place < len(content):
        if place + ITEM_HEADER_BYTES > len(content):
            raise DecodeError("a frame that ends inside the header of an item")
        (word,) = _ITEM.unpack_from(content, place)
        start = place + ITEM_HEADER_BYTES
        place = start + (word & ~_REFUSED)
        if place > len(content):
            raise DecodeError("a frame that ends inside an item")
        yield content[start:place], bool(word & _REFUSED)


def read_header(header: bytes) -> tuple[int, int, int]:
    """Return index, length and flags of a frame; DecodeError if its length is out of bounds."""
    index, length, flags = _HEADER.unpack(header)
    if length > FRAME_BYTES or flags & ~(LAST | PACKED):
        raise DecodeError(f"a frame of {length} bytes with flags {flags}")
    return index, length, flags


def _has_aes() -> bool:
    """Say whether this machine's processor has instructions for AES; True if that cannot be known."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="latin-1").split()
    except OSError:
        return True
    return "aes" in words

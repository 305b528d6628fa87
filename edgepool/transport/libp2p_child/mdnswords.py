"""What libp2p peers say to each other by multicast DNS, as bytes; pure.

Specification: github.com/libp2p/specs, discovery/mdns.md. Somebody asks for PTR records of _p2p._udp.local.
Who wants to be found answers with one, and with a TXT record under a name of its own, in which each string is
'dnsaddr=' and a multiaddr that ends with /p2p/PEER. Anybody on the local network can say anything here: what
is read is a place to try and no more.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

MAX_DATAGRAM_BYTES = 9000
"""No longer one is read (RFC 6762, 17)."""
MAX_ENTRIES = 64
"""A datagram with more questions and records than that says nothing."""
MAX_FOUND = 16
"""So many addresses are taken from one datagram."""
LIFETIME_S = 120

_SERVICE = ("_p2p", "_udp", "local")
_HEADER = struct.Struct(">HHHHHH")
_QUESTION = struct.Struct(">HH")
_RECORD = struct.Struct(">HHIH")
_ANSWERS = 0x8400
_PTR, _TXT, _ANY, _IN = 12, 16, 255, 1
_KEY = "dnsaddr="
_MAX_LABELS = 16
_MAX_JUMPS = 16
_ADDRESS = re.compile(r"(/ip[46]/[0-9A-Fa-f.:]{2,45}/tcp/[0-9]{1,5})/p2p/([1-9A-HJ-NP-Za-km-z]{46,64})")


class NoDns(ValueError):
    """The bytes are no DNS message, or one that says more than anybody needs to."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a datagram says: whether it asks for libp2p peers, and (peer id, multiaddr) of those it names.

    The peer ids are base58 text and the addresses of numeric hosts; nothing else about them was checked.
    """

    asks: bool
    found: tuple[tuple[str, str], ...]


def question() -> bytes:
    """Return the datagram that asks who is here."""
    return _HEADER.pack(0, 0, 1, 0, 0, 0) + _name(_SERVICE) + _QUESTION.pack(_PTR, _IN)


def answer(label: str, addresses: Sequence[str]) -> bytes:
    """Return the datagram that tells `addresses` (multiaddrs with /p2p/PEER); `label` is any name of ours."""
    ours = _name((label, *_SERVICE))
    strings = [f"{_KEY}{address}".encode() for address in addresses]
    text = b"".join(bytes([len(one)]) + one for one in strings if len(one) < 256)
    pointer = _name(_SERVICE) + _RECORD.pack(_PTR, _IN, LIFETIME_S, len(ours)) + ours
    return (
        _HEADER.pack(0, _ANSWERS, 0, 1, 0, 1)
        + pointer
        + ours
        + _RECORD.pack(_TXT, _IN, LIFETIME_S, len(text))
        + text
    )


def read(datagram: bytes) -> Heard:
    """Return what a datagram says; NoDns if that cannot be told."""
    if not _HEADER.size <= len(datagram) <= MAX_DATAGRAM_BYTES:
        raise NoDns("its length")
    _, flags, questions, *records = _HEADER.unpack_from(datagram)
    if questions + sum(records) > MAX_ENTRIES:
        raise NoDns("too many entries")
    at, asks = _HEADER.size, False
    try:
        for _ in range(questions):
            name, at = _read_name(datagram, at)
            kind, _ = _QUESTION.unpack_from(datagram, at)
            at += _QUESTION.size
            asks = asks or (name == _SERVICE and kind in (_PTR, _ANY))
        found: dict[tuple[str, str], None] = {}
        for _ in range(sum(records)):
            name, at = _read_name(datagram, at)
            kind, _, _, size = _RECORD.unpack_from(datagram, at)
            at += _RECORD.size
            if at + size > len(datagram):
                raise NoDns("a record without an end")
            if kind == _TXT and len(name) == 4 and name[1:] == _SERVICE:
                found |= dict.fromkeys(_addresses(datagram[at : at + size]))
            at += size
    except struct.error:
        raise NoDns("it ends too soon") from None
    is_answer = bool(flags & 0x8000)
    return Heard(asks and not is_answer, tuple(found)[:MAX_FOUND] if is_answer else ())


def _addresses(text: bytes) -> list[tuple[str, str]]:
    """Return (peer, address) of the strings in the data of a TXT record that are such."""
    found = []
    while text:
        size, string = text[0], text[1 : 1 + text[0]]
        text = text[1 + size :]
        if string.startswith(_KEY.encode()):
            match = _ADDRESS.fullmatch(string[len(_KEY) :].decode("ascii", "replace"))
            if match is not None:
                found.append((match[2], match[1]))
    return found


def _name(labels: Sequence[str]) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def _read_name(data: bytes, at: int) -> tuple[tuple[str, ...], int]:
    """Return the labels of the name at `at`, in small letters, and where what follows it begins."""
    labels: list[str] = []
    after = -1
    for _ in range(_MAX_LABELS + _MAX_JUMPS):
        if at >= len(data):
            raise NoDns("a name without an end")
        size = data[at]
        if size == 0:
            return tuple(labels), at + 1 if after < 0 else after
        if size >= 0xC0:
            if at + 1 >= len(data):
                raise NoDns("half a pointer")
            target = (size & 0x3F) << 8 | data[at + 1]
            if target >= at:
                raise NoDns("a pointer that leads onward")
            after, at = at + 2 if after < 0 else after, target
        elif size > 63 or at + 1 + size > len(data):
            raise NoDns("a name without an end")
        else:
            labels.append(data[at + 1 : at + 1 + size].decode("ascii", "replace").lower())
            at += 1 + size
    raise NoDns("a name without an end")

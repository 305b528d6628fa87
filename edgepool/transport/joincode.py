"""The one line that lets a gateway join [S3.6]: where to go, whom to trust there, and a secret.

In bytes: version (1), number of addresses (1), the addresses, the start of the SHA-256 of the
authority's root certificate (16), the invitation's id (6), its secret (16), and a CRC-32 of all that
(4); written in base32 without padding. An address is its kind (4, 6, or 0 for a DNS name), then 4 or 16
bytes, or a length byte and the name, then the port (2). One altered character is always noticed.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import zlib
from dataclasses import dataclass, field

from edgepool.errors import DecodeError, LocalError
from edgepool.model.crypto import sha256
from edgepool.model.ids import format_address, parse_address

VERSION = 1
FINGERPRINT_BYTES = 16
ID_BYTES = 6
SECRET_BYTES = 16
CHECK_BYTES = 4
MAX_ADDRESSES = 4
MAX_CODE_LENGTH = 512

_TAIL_BYTES = FINGERPRINT_BYTES + ID_BYTES + SECRET_BYTES
_DNS = 0


@dataclass(frozen=True, slots=True)
class JoinCode:
    """What a code says; `addresses` are the registrar's multiaddrs, without /p2p."""

    addresses: tuple[str, ...]
    fingerprint: bytes
    invitation: bytes
    secret: bytes = field(repr=False)


def fingerprint_of(root_der: bytes) -> bytes:
    """Return the 16 bytes by which a code names an authority's root certificate (DER)."""
    return sha256(root_der)[:FINGERPRINT_BYTES]


def write_code(code: JoinCode) -> str:
    """Return `code` as one word of upper-case letters and digits; DecodeError for a bad address."""
    if not 1 <= len(code.addresses) <= MAX_ADDRESSES:
        raise DecodeError(f"a code holds 1 to {MAX_ADDRESSES} addresses, not {len(code.addresses)}")
    parts = [bytes([VERSION, len(code.addresses)]), *map(_address_bytes, code.addresses)]
    raw = b"".join([*parts, code.fingerprint, code.invitation, code.secret])
    raw += zlib.crc32(raw).to_bytes(CHECK_BYTES, "big")
    return base64.b32encode(raw).decode().rstrip("=")


def read_code(text: str) -> JoinCode:
    """Return what a code says; LocalError if it is not exactly as it was given out."""
    word = text.strip().upper()
    altered = LocalError(
        "this is not a code as 'edgepool invite' printed it: copy it again, whole and without changes"
    )
    if len(word) > MAX_CODE_LENGTH or not word.isascii():
        raise altered
    try:
        raw = base64.b32decode(word + "=" * (-len(word) % 8))
    except binascii.Error:
        raise altered from None
    # The last character has bits that base32 does not use; they are judged, too.
    if base64.b32encode(raw).decode().rstrip("=") != word or len(raw) < 2 + _TAIL_BYTES + CHECK_BYTES:
        raise altered
    body, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
    if zlib.crc32(body) != int.from_bytes(check, "big"):
        raise altered
    if body[0] != VERSION:
        raise LocalError(f"this code is of version {body[0]}, and this edgepool reads version {VERSION}")
    addresses, rest = _read_addresses(body[1], body[2:])
    if len(rest) != _TAIL_BYTES:
        raise altered
    at_id, at_secret = FINGERPRINT_BYTES, FINGERPRINT_BYTES + ID_BYTES
    return JoinCode(addresses, rest[:at_id], rest[at_id:at_secret], rest[at_secret:])


def _address_bytes(address: str) -> bytes:
    host, port, _ = parse_address(address)
    try:
        numeric = ipaddress.ip_address(host)
        packed = bytes([numeric.version]) + numeric.packed
    except ValueError:
        name = host.encode()
        if len(name) > 255:
            raise DecodeError(f"'{host[:80]}' is too long for a code") from None
        packed = bytes([_DNS, len(name)]) + name
    return packed + port.to_bytes(2, "big")


def _read_addresses(number: int, raw: bytes) -> tuple[tuple[str, ...], bytes]:
    """Return the addresses at the start of `raw`, and what follows; LocalError if they are none."""
    addresses: list[str] = []
    try:
        if not 1 <= number <= MAX_ADDRESSES:
            raise ValueError
        for _ in range(number):
            kind = raw[0]
            start, length = (2, raw[1]) if kind == _DNS else (1, {4: 4, 6: 16}[kind])
            packed, port, raw = (
                raw[start : start + length],
                raw[start + length : start + length + 2],
                raw[start + length + 2 :],
            )
            if len(packed) != length or len(port) != 2:
                raise ValueError
            host = packed.decode() if kind == _DNS else str(ipaddress.ip_address(packed))
            address = format_address(host, int.from_bytes(port, "big"))
            parse_address(address)
            addresses.append(address)
    except (ValueError, KeyError, IndexError, DecodeError):
        raise LocalError("the addresses in this code are none: have another one made") from None
    return tuple(addresses), raw

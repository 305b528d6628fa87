"""A TLS 1.3 client (RFC 8446) that sends whatever certificates and signature it is told to.

No TLS library presents a certificate without its key; a thief would. It knows one cipher suite
(AES-128-GCM), one group (X25519) and one scheme (Ed25519), and does not look at the server's certificate.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

RECORD_BYTES = 16_000
Sign = Callable[[bytes], bytes]


async def shake_hands(
    host: str, port: int, protocol: str, certificates: Sequence[bytes], sign: Sign, extra: bytes = b""
) -> bytes:
    """Shake hands with these certificates (DER); return all bytes that were sent.

    `sign` makes the proof that the key of the first is here. `extra` is sent behind the handshake. Returns
    when the server has ended the connection.
    """
    reader, writer = await asyncio.open_connection(host, port)
    client = _Client(protocol)
    sent = client.hello
    try:
        writer.write(client.hello)
        client.server_hello(await _record(reader))
        while not client.server_finished:
            client.server_record(await _record(reader))
        flight = client.flight(certificates, sign, extra)
        sent += flight
        writer.write(flight)
        await _until_closed(reader)
    finally:
        writer.close()
    return sent


async def replay(host: str, port: int, recorded: bytes) -> None:
    """Send what another connection has sent; return when the server has ended the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(recorded)
        await _until_closed(reader)
    finally:
        writer.close()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        async with asyncio.timeout(30):
            while await reader.read(65536):
                pass


async def _record(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(30):
        header = await reader.readexactly(5)
        return header + await reader.readexactly(int.from_bytes(header[3:5]))


class _Client:
    """The key schedule and the messages of one connection."""

    def __init__(self, protocol: str) -> None:
        self.server_finished = False
        self._key = X25519PrivateKey.generate()
        share = self._key.public_key().public_bytes_raw()
        name = protocol.encode()
        extensions = b"".join(
            (
                _extension(43, b"\x02\x03\x04"),
                _extension(10, b"\x00\x02\x00\x1d"),
                _extension(13, b"\x00\x02\x08\x07"),
                _extension(51, b"\x00\x24\x00\x1d\x00\x20" + share),
                _extension(16, _sized(2, _sized(1, name))),
            )
        )
        body = (
            b"\x03\x03" + os.urandom(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00" + _sized(2, extensions)
        )
        self._said = _message(1, body)
        self.hello = b"\x16\x03\x01" + _sized(2, self._said)
        self._pending = b""

    def server_hello(self, record: bytes) -> None:
        assert record[0] == 0x16, f"the server said {record.hex()}"
        message = record[5:]
        self._said += message
        place = 4 + 2 + 32
        place += 1 + message[place] + 2 + 1 + 2
        share = b""
        while place < len(message):
            kind, length = (
                int.from_bytes(message[place : place + 2]),
                int.from_bytes(message[place + 2 : place + 4]),
            )
            if kind == 51:
                share = message[place + 8 : place + 4 + length]
            place += 4 + length
        shared = self._key.exchange(X25519PublicKey.from_public_bytes(share))
        early = hmac.digest(bytes(32), bytes(32), "sha256")
        secret = hmac.digest(_expand(early, "derived", hashlib.sha256().digest()), shared, "sha256")
        transcript = hashlib.sha256(self._said).digest()
        self._mine = _expand(secret, "c hs traffic", transcript)
        self._reading = _Keys(_expand(secret, "s hs traffic", transcript))

    def server_record(self, record: bytes) -> None:
        if record[0] == 20:
            return  # for middleboxes
        content = self._reading.open(record)
        assert content[-1] == 0x16, f"the server said {content.hex()}"
        self._pending += content[:-1]
        while len(self._pending) >= 4:
            end = 4 + int.from_bytes(self._pending[1:4])
            if len(self._pending) < end:
                break
            message, self._pending = self._pending[:end], self._pending[end:]
            self._said += message
            self.server_finished = message[0] == 20

    def flight(self, certificates: Sequence[bytes], sign: Sign, extra: bytes) -> bytes:
        entries = b"".join(_sized(3, der) + b"\x00\x00" for der in certificates)
        self._said += (first := _message(11, b"\x00" + _sized(3, entries)))
        signed = b" " * 64 + b"TLS 1.3, client CertificateVerify\x00" + hashlib.sha256(self._said).digest()
        self._said += (second := _message(15, b"\x08\x07" + _sized(2, sign(signed))))
        finished = hmac.digest(
            _expand(self._mine, "finished", b""), hashlib.sha256(self._said).digest(), "sha256"
        )
        messages = first + second + _message(20, finished)
        keys = _Keys(self._mine)
        parts = [messages[at : at + RECORD_BYTES] for at in range(0, len(messages), RECORD_BYTES)]
        return b"".join(keys.seal(part + b"\x16") for part in parts) + extra


class _Keys:
    """What protects one direction of the handshake."""

    def __init__(self, secret: bytes) -> None:
        self._aead = AESGCM(_expand(secret, "key", b"", 16))
        self._iv = int.from_bytes(_expand(secret, "iv", b"", 12))
        self._number = 0

    def seal(self, content: bytes) -> bytes:
        header = b"\x17\x03\x03" + (len(content) + 16).to_bytes(2)
        return header + self._aead.encrypt(self._nonce(), content, header)

    def open(self, record: bytes) -> bytes:
        return self._aead.decrypt(self._nonce(), record[5:], record[:5]).rstrip(b"\x00")

    def _nonce(self) -> bytes:
        nonce = (self._iv ^ self._number).to_bytes(12)
        self._number += 1
        return nonce


def _expand(secret: bytes, label: str, context: bytes, length: int = 32) -> bytes:
    info = length.to_bytes(2) + _sized(1, b"tls13 " + label.encode()) + _sized(1, context)
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def _sized(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width) + content


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + _sized(2, content)


def _message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + _sized(3, body)

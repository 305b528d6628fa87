"""The one crypto module: Ed25519 by PyNaCl, SHA-256 for chains, BLAKE3 for data.

Every signature covers a domain (what kind of statement it is), the network and, where there is
one, the chain: nothing that was signed can be replayed as something else, or somewhere else.
One implementation of Ed25519 decides validity everywhere, since implementations differ at edges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import nacl.bindings
import nacl.exceptions
from blake3 import blake3

from edgepool.errors import DecodeError
from edgepool.model.codec import encode
from edgepool.model.ids import PeerId, peer_id_from_public_key, public_key_of

SIGNATURE_BYTES = 64
HASH_BYTES = 32


def sha256(data: bytes) -> bytes:
    """Return the 32-byte SHA-256 of `data`."""
    return hashlib.sha256(data).digest()


def data_hash(data: bytes | memoryview) -> bytes:
    """Return the 32-byte BLAKE3 hash of twin data."""
    return blake3(data).digest()


class Signer:
    """An Ed25519 key pair made from a 32-byte seed; signs statements, never raw bytes."""

    def __init__(self, seed: bytes) -> None:
        self._public, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)
        self._seed = seed
        self.peer: PeerId = peer_id_from_public_key(self._public)

    def sign(self, domain: str, statement: Sequence[Any]) -> bytes:
        """Return the 64-byte signature over `statement` in `domain`."""
        message = signed_bytes(domain, statement)
        return nacl.bindings.crypto_sign(message, self._secret)[:SIGNATURE_BYTES]

    @property
    def seed(self) -> bytes:
        """The 32 bytes that are the key; for the process that speaks libp2p in this peer's name alone."""
        return self._seed

    def derive(self, purpose: str, context: bytes) -> bytes:
        """Return 32 secret bytes that only this key can make, for one purpose and context."""
        return hashlib.blake2b(purpose.encode() + b"\0" + context, key=self._seed, digest_size=32).digest()

    def unsealed(self, sealed: bytes) -> bytes:
        """Return what `sealed_for` has sealed for this key; DecodeError if it was not, or was altered."""
        public = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(self._public)
        secret = nacl.bindings.crypto_sign_ed25519_sk_to_curve25519(self._secret)
        try:
            return nacl.bindings.crypto_box_seal_open(sealed, public, secret)
        except (nacl.exceptions.CryptoError, ValueError, TypeError):
            raise DecodeError("this was not sealed for this key, or was altered") from None


def sealed_for(peer: PeerId, data: bytes) -> bytes:
    """Return `data` so that only the key of `peer` opens it (a sealed box of libsodium).

    It says nothing of who has sealed it. DecodeError if the peer id is not such a key.
    """
    try:
        public = nacl.bindings.crypto_sign_ed25519_pk_to_curve25519(public_key_of(peer))
    except (nacl.exceptions.CryptoError, RuntimeError):
        raise DecodeError(f"nothing can be sealed for {peer}") from None
    return nacl.bindings.crypto_box_seal(data, public)


def signed_bytes(domain: str, statement: Sequence[Any]) -> bytes:
    """Return the exact bytes that a signature over `statement` in `domain` covers."""
    return encode(["edgepool/1/" + domain, *statement])


def verify(peer: PeerId, domain: str, statement: Sequence[Any], signature: bytes) -> bool:
    """Say whether `signature` is `peer`'s over `statement` in `domain`; no peer text makes it raise."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        message = signature + signed_bytes(domain, statement)
        nacl.bindings.crypto_sign_open(message, public_key_of(peer))
    except (nacl.exceptions.BadSignatureError, ValueError, DecodeError):
        return False
    return True

"""What a simulation need not compute for each of its peers: Ed25519, and beacon chains.

Twenty peers in one process would check each signature twenty times, and that would be most of the
work. While a simulation runs, the Ed25519 library's two functions are replaced by an ideal scheme: a
signature is a hash of secret key and message, and checking it means computing it again with the secret
of that public key, which is known only in here and only once the key has signed. Nobody in the
simulation can sign without the secret, so whatever is forged fails, as it would in the world. Beacon chains
are no longer than a run can use. The core is not touched, and everything is put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from hashlib import sha512

import nacl.bindings
import nacl.exceptions

from edgepool.core.pools import lifecycle as lifecycle_module
from edgepool.model.beacon import _STRIDE as STRIDE
from edgepool.model.beacon import BeaconChain
from edgepool.model.crypto import SIGNATURE_BYTES, sha256
from edgepool.model.pool import BEACON_LENGTH

CHAINS_KEPT = 1024

_secrets: dict[bytes, bytes] = {}
_sign = nacl.bindings.crypto_sign
_open = nacl.bindings.crypto_sign_open
_depth = 0


class _RememberedBeacon(BeaconChain):
    """A beacon chain that makes the values between two marks once, not for each reveal."""

    def __init__(self, secret: bytes, length: int) -> None:
        super().__init__(secret, length)
        self._run: tuple[int, list[bytes]] = (-1, [])

    def reveal(self, count: int) -> bytes:
        """Return the preimage to reveal after `count` earlier reveals; b"" once all are used."""
        position = self.length - 1 - count
        if position < 0:
            return b""
        if self._run[0] != position // STRIDE:
            values = [self._marks[position // STRIDE]]
            for _ in range(STRIDE - 1):
                values.append(sha256(values[-1]))
            self._run = (position // STRIDE, values)
        return self._run[1][position % STRIDE]


_beacon_chain = lru_cache(maxsize=CHAINS_KEPT)(_RememberedBeacon)


@contextmanager
def ideal_signatures(heights: int = BEACON_LENGTH) -> Iterator[None]:
    """Replace Ed25519 by hashes in here, and make each beacon chain once; may be nested.

    `heights` is how many blocks a chain gets, beside those by which a pool shows that it goes on.
    """
    global _depth
    _depth += 1
    if _depth == 1:
        length = min(BEACON_LENGTH, STRIDE * -(-(512 + 4 * heights) // STRIDE))
        _replace(_sign_by_hash, _open_by_hash, partial(_beacon_chain, length=length))
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _replace(_sign, _open, BeaconChain)
            _secrets.clear()


def _replace(sign: object, open: object, beacon_chain: object) -> None:
    for module, name, function in (
        (nacl.bindings, "crypto_sign", sign),
        (nacl.bindings, "crypto_sign_open", open),
        (lifecycle_module, "BeaconChain", beacon_chain),
    ):
        setattr(module, name, function)


def _sign_by_hash(message: bytes, secret: bytes) -> bytes:
    _secrets[secret[32:]] = secret  # an Ed25519 secret key ends with its public key
    return sha512(secret + message).digest() + message


def _open_by_hash(signed: bytes, public: bytes) -> bytes:
    secret, message = _secrets.get(public), signed[SIGNATURE_BYTES:]
    if secret is None or sha512(secret + message).digest() != signed[:SIGNATURE_BYTES]:
        raise nacl.exceptions.BadSignatureError
    return message

"""The beacon: shared randomness that nobody can grind, one hash chain for each member.

On joining, a member registers `tip = H^L(secret)`. Whoever packs a block reveals the preimage of
its tip, which becomes its new tip; the chain's beacon absorbs the reveal. Nothing can be chosen:
what is left to a member is to skip its own turn.
"""

from __future__ import annotations

from edgepool.model.crypto import HASH_BYTES, sha256
from edgepool.model.pool import BEACON_LENGTH, Genesis

_STRIDE = 256


class BeaconChain:
    """A member's own hash chain for one pool, made from a 32-byte secret.

    Keeps every 256th value and, of the reveals under way, all between two of them: so a reveal costs one
    hash on the average, and 256 now and then.
    """

    def __init__(self, secret: bytes, length: int = BEACON_LENGTH) -> None:
        assert len(secret) == HASH_BYTES
        self.length = length
        self._marks = [secret]
        value = secret
        for i in range(1, length + 1):
            value = sha256(value)
            if i % _STRIDE == 0:
                self._marks.append(value)
        self.tip = value
        self._between: tuple[int, list[bytes]] = (-1, [])

    def reveal(self, count: int) -> bytes:
        """Return the preimage to reveal after `count` earlier reveals; b"" once all are used."""
        position = self.length - 1 - count
        if position < 0:
            return b""
        mark = position // _STRIDE
        if self._between[0] != mark:
            values = [self._marks[mark]]
            while len(values) < _STRIDE:
                values.append(sha256(values[-1]))
            self._between = (mark, values)
        return self._between[1][position % _STRIDE]


def first_beacon(genesis: Genesis) -> bytes:
    """Return a chain's 32-byte beacon before its first block: it hashes all members' tips."""
    tips = b"".join(acceptance.beacon_tip for acceptance in genesis.acceptances)
    return sha256(bytes.fromhex(genesis.chain) + tips)


def next_beacon(beacon: bytes, reveal: bytes) -> bytes:
    """Return the beacon after a block with `reveal`."""
    return sha256(beacon + reveal)

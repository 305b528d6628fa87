"""Where a peer can be dialled, as it says itself and signs, so that others can pass it on.

An address is no more than a place to try: who answers there proves who that is, as on any link.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire
from edgepool.model.crypto import Signer, verify
from edgepool.model.fields import PeerText, Signature

MAX_ADDRESSES = 8
_DOMAIN = "whereabouts"


class Whereabouts(Wire, frozen=True):
    """The addresses (multiaddrs) of `peer`, signed by it. Of two, that with the higher `number` is newer.

    The number is the signer's wall time in ms, or one more than that of an earlier record of its own, if its
    clock has gone back; nobody compares it with anything else.
    """

    peer: PeerText
    addresses: Annotated[
        tuple[Annotated[str, Meta(max_length=256)], ...], Meta(min_length=1, max_length=MAX_ADDRESSES)
    ]
    number: Annotated[int, Meta(ge=0, le=2**53)]
    signature: Signature

    def authentic(self, network: str) -> bool:
        """Say whether the peer has signed this for `network`."""
        return verify(self.peer, _DOMAIN, [network, self.peer, self.addresses, self.number], self.signature)


def sign_whereabouts(signer: Signer, network: str, addresses: tuple[str, ...], number: int) -> Whereabouts:
    """Return where `signer` can be dialled; there is at least one address."""
    addresses = addresses[:MAX_ADDRESSES]
    signature = signer.sign(_DOMAIN, [network, signer.peer, addresses, number])
    return Whereabouts(signer.peer, addresses, number, signature)

"""What the members of a main chain decide about whom to trust [S3.6]: organisations, and revocations.

A root travels as the bytes of its certificate. What those say is judged where connections are, never on a
chain: see model/credential.py.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.errors import DecodeError
from edgepool.model.codec import Wire
from edgepool.model.crypto import Signer, verify
from edgepool.model.fields import Hash, MaybeSignature, Name, PeerText, Text, TimeMs
from edgepool.model.ids import PeerId, public_key_of

MAX_ROOT_BYTES = 2048
"""No root is longer, in DER; an RSA root with a key of 4096 bits has about 1400 bytes."""
REVOCATION_DOMAIN = "revocation"


class AdmitRoot(Wire, tag="admit-root", frozen=True):
    """Trust the members of one more organisation: `root` is its certificate in DER."""

    organisation: Name
    root: Annotated[bytes, Meta(min_length=1, max_length=MAX_ROOT_BYTES)]


class RetireRoot(Wire, tag="retire-root", frozen=True):
    """Trust a root no more from the wall time `from_ms` on; `root` is its fingerprint."""

    root: Hash
    from_ms: TimeMs


class RevokePeer(Wire, tag="revoke-peer", frozen=True):
    """Let `peer` in no more, whatever its certificate says; there is no way back for its key.

    `signature` (domain 'revocation', see `revocation_terms`) is the peer's own, if its owner wants it; such a
    revocation every member approves. It is empty otherwise.
    """

    peer: PeerText
    signature: MaybeSignature = b""

    def problem(self, network: str) -> str:
        """Say why this is no well-formed revocation, or return ''; it may cost a signature check."""
        try:
            public_key_of(PeerId(self.peer))
        except DecodeError as error:
            return str(error)
        if self.signature and not self.is_own(network):
            return "the signature of the one who is to be revoked does not hold"
        return ""

    def is_own(self, network: str) -> bool:
        """Say whether the peer has signed its own revocation."""
        terms = revocation_terms(network, PeerId(self.peer))
        return verify(PeerId(self.peer), REVOCATION_DOMAIN, terms, self.signature)


TrustStep = AdmitRoot | RetireRoot | RevokePeer


class TrustChange(Wire, tag="trust", frozen=True):
    """The author approves a change of whom to trust; it is decided like a change of the members.

    More than two thirds of the roster must have the same body on the chain. Each step can be decided only
    once, so that it needs no number: others that are open stay open. `reason` is for people.
    """

    step: TrustStep
    reason: Text


def revocation_terms(network: str, peer: PeerId) -> list[object]:
    """Return what a peer signs (domain 'revocation') that wants its own key revoked."""
    return [network, peer]


def own_revocation(signer: Signer, network: str) -> RevokePeer:
    """Return the revocation of a key, signed by that key."""
    signature = signer.sign(REVOCATION_DOMAIN, revocation_terms(network, signer.peer))
    return RevokePeer(signer.peer, signature)

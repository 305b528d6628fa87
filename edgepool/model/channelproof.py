"""Membership proved on a channel that is not mutual TLS [S3.6].

Any transport with an authenticated channel, of which both ends know one and the same secret-free value, gets
the checks that TLS links get: each side sends a `MembershipProof`, and reads nothing else of the other
before it has checked that one's. The signature covers the network, both peers and the channel, so that a
proof shown once is worth nothing on any other channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire
from edgepool.model.credential import MAX_CERTIFICATE_BYTES, POSSESSION, NotProven, Root, check_certificate
from edgepool.model.crypto import Signer, verify
from edgepool.model.fields import Signature
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId

MAX_PROOF_BYTES = MAX_CERTIFICATE_BYTES + 128
"""No encoded proof is longer: a frame that announces more is refused before it is read."""
MIN_BINDING_BYTES, MAX_BINDING_BYTES = 16, 64
_DOMAIN = "channel"


class MembershipProof(Wire, frozen=True):
    """A peer's certificate (DER) and its signature (domain 'channel') over one channel."""

    certificate: Annotated[bytes, Meta(min_length=1, max_length=MAX_CERTIFICATE_BYTES)]
    signature: Signature


def make_proof(
    signer: Signer, certificate: bytes, network: str, binding: bytes, verifier: PeerId
) -> MembershipProof:
    """Return the proof of `signer`, whose certificate (DER) is given, for `verifier` on one channel.

    `binding` is a value of that channel alone, 16 to 64 bytes: an exporter of its keys, or the hash of its
    handshake. It must be the same at both ends, and no other channel can have it.
    """
    statement = _statement(network, binding, signer.peer, verifier)
    return MembershipProof(certificate, signer.sign(_DOMAIN, statement))


def check_proof(
    proof: MembershipProof,
    *,
    roots: Iterable[Root],
    network: str,
    binding: bytes,
    prover: PeerId,
    verifier: PeerId,
    now_ms: int,
) -> PeerIdentity:
    """Return whom `proof` proves to `verifier` on the channel `binding`, or raise NotProven.

    `prover` is whom the channel itself has at its other end. Whether that peer is revoked is for the caller:
    `TrustSet.check_proof` asks both.
    """
    identity = check_certificate(proof.certificate, roots, network, now_ms)
    if identity.peer != prover:
        raise NotProven(prover, POSSESSION, f"it showed the certificate of {identity.peer}")
    if not verify(prover, _DOMAIN, _statement(network, binding, prover, verifier), proof.signature):
        raise NotProven(prover, POSSESSION, "it did not sign this channel with the key of its certificate")
    return identity


def _statement(network: str, binding: bytes, prover: PeerId, verifier: PeerId) -> list[object]:
    assert MIN_BINDING_BYTES <= len(binding) <= MAX_BINDING_BYTES, "no value that a channel is bound by"
    return [network, binding, prover, verifier]

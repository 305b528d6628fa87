"""Messages by which a peer gets a newer certificate, or one for a new key, over its link [S3.6].

The link has proved who asks. Whoever asks for a new key's certificate shows by a signature that it has that
key, too. What comes back is believed if a root that is trusted already has issued it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire
from edgepool.model.credential import MAX_CERTIFICATE_BYTES
from edgepool.model.crypto import Signer, verify
from edgepool.model.fields import MaybeSignature, PeerText, Signature, Text
from edgepool.model.ids import PeerId
from edgepool.model.trust import MAX_ROOT_BYTES, RevokePeer

ROTATION_DOMAIN = "rotation"
NEXT_ROOT_DOMAIN = "next-root"
_Certificate = Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]


class CertificateRequest(Wire, tag="certify?", frozen=True):
    """A member asks a registrar for a certificate for `key`: its own, or the one that is to replace it.

    `signature` (domain 'rotation', see `rotation_terms`) is the new key's, empty for its own.
    """

    key: PeerText
    signature: MaybeSignature


class CertificateAnswer(Wire, tag="certify", frozen=True):
    """The certificate for `key` in DER; empty if there is none, and `refusal` says why."""

    key: PeerText
    certificate: _Certificate
    refusal: Text


class CertificateShown(Wire, tag="certificate", frozen=True):
    """The sender has a newer certificate (DER) for the key with which it has made this link."""

    certificate: _Certificate


class RootFollows(Wire, tag="root-follows", frozen=True):
    """A registrar's organisation has a next root (DER), for which the old root's own key vouches.

    `signature` (domain 'next-root', see `next_root_terms`) is of the key of the root that the receiver has.
    Members of main chains know of it without this; others would never.
    """

    root: Annotated[bytes, Meta(min_length=1, max_length=MAX_ROOT_BYTES)]
    signature: Signature


Certifying = CertificateRequest | CertificateAnswer | CertificateShown | RootFollows | RevokePeer
"""The last: a former key of the sender's, which has no word in a main pool, has signed its own revocation."""


def next_root_terms(network: str, old: bytes, root: bytes) -> Sequence[object]:
    """Return what the key of a root signs (domain 'next-root') for the one that follows.

    `old` is its own fingerprint, `root` the next one's DER.
    """
    return [network, old, root]


def rotation_terms(network: str, old: PeerId, new: PeerId, registrar: PeerId) -> Sequence[object]:
    """Return what a new key signs (domain 'rotation') that is to replace the key `old`."""
    return [network, old, new, registrar]


def request_for(signer: Signer, network: str, old: PeerId, registrar: PeerId) -> CertificateRequest:
    """Return the request of `old` for a certificate for the key of `signer`, its own or a new one."""
    if signer.peer == old:
        return CertificateRequest(old, b"")
    terms = rotation_terms(network, old, signer.peer, registrar)
    return CertificateRequest(signer.peer, signer.sign(ROTATION_DOMAIN, terms))


def request_problem(request: CertificateRequest, network: str, old: PeerId, registrar: PeerId) -> str:
    """Say why a request does not prove what it must, or return ''; `old` is whom the link has proved."""
    if request.key == old:
        return ""
    terms = rotation_terms(network, old, PeerId(request.key), registrar)
    held = verify(PeerId(request.key), ROTATION_DOMAIN, terms, request.signature)
    return "" if held else "the new key has not signed the request"

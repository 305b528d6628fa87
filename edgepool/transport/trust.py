"""Whom a peer trusts now: roots of organisations, and the peers that are revoked [S3.6].

The roots that a peer was installed with are joined by those that the members of its main chains have
admitted, less those that they have retired. The peer keeps this up to date with every block; all its
doors ask here, in the call in which a connection is proved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgepool.model.channelproof import MembershipProof, check_proof
from edgepool.model.credential import REVOKED, NotProven, Root, check_certificate
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId
from edgepool.runtime.clock import SystemClock


class TrustSet:
    """The roots and the revoked peers of one peer. `roots` are those trusted now."""

    def __init__(self, network: str, installed: Iterable[Root]) -> None:
        self._network = network
        self._clock = SystemClock()
        self._installed = tuple(installed)
        self._revoked: frozenset[PeerId] = frozenset()
        self._on_roots: list[Callable[[], None]] = []
        self.roots: tuple[Root, ...] = self._installed

    def check(self, der: bytes) -> PeerIdentity:
        """Return whom a certificate (DER) proves now; NotProven, with the reason, if nobody."""
        return self._unrevoked(check_certificate(der, self.roots, self._network, self._now_ms()))

    def check_proof(
        self, proof: MembershipProof, *, binding: bytes, prover: PeerId, verifier: PeerId
    ) -> PeerIdentity:
        """Return whom a proof on another transport's channel proves; NotProven, with the reason, if nobody.

        See model/channelproof.py for the meaning of the arguments.
        """
        identity = check_proof(
            proof,
            roots=self.roots,
            network=self._network,
            binding=binding,
            prover=prover,
            verifier=verifier,
            now_ms=self._now_ms(),
        )
        return self._unrevoked(identity)

    def _now_ms(self) -> int:
        return self._clock.now().wall_ms

    def _unrevoked(self, identity: PeerIdentity) -> PeerIdentity:
        if identity.peer in self._revoked:
            raise NotProven(identity.peer, REVOKED, "its membership was revoked")
        return identity

    def is_root(self, der: bytes) -> bool:
        """Say whether this is a root that is trusted now."""
        return any(root.der == der for root in self.roots)

    def install(self, installed: Iterable[Root]) -> None:
        """Take the roots that the peer's own files hold now."""
        self._installed = tuple(installed)
        self.roots = self._installed

    def watch_roots(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever other roots are trusted."""
        self._on_roots.append(changed)

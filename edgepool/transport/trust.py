"""Whom a peer trusts now: roots of organisations, and the peers that are revoked [S3.6].

The roots that a peer was installed with are joined by those that the members of its main chains have
admitted, less those that they have retired. The peer keeps this up to date with every block; all its
doors ask here, in the call in which a connection is proved, and let the connections that they took be held
here, so that they end when their ground is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgepool.core.ledger.trust import UnitedTrust
from edgepool.errors import DecodeError
from edgepool.model.channelproof import MembershipProof, check_proof
from edgepool.model.credential import (
    LAPSED,
    POSSESSION,
    RETIRED,
    REVOKED,
    NotProven,
    Root,
    check_certificate,
    read_root,
)
from edgepool.model.identity import PeerIdentity
from edgepool.model.ids import PeerId
from edgepool.runtime.clock import SystemClock

_log = logging.getLogger(__name__)

LAPSE_GRACE_MS = 300_000
"""How long a connection outlives the certificate that it was made with, if its peer shows no newer one."""

End = Callable[[str], None]
"""Ends a connection at once; is told why: REVOKED, RETIRED or LAPSED."""


@dataclass(frozen=True, slots=True)
class _Held:
    identity: PeerIdentity
    end: End
    is_over: Callable[[], bool]


def _end(held: _Held, fault: str) -> None:
    """End a connection; one that fails at it must not keep the others of a revoked peer alive."""
    try:
        held.end(fault)
    except Exception:
        _log.exception("a connection of %s, to be cut, has failed at its end", held.identity.name)


class TrustSet:
    """The roots and the revoked peers of one peer, and the connections that rest on them.

    `roots` are those trusted now, `revoked` the peers that are not.
    """

    def __init__(self, network: str, installed: Iterable[Root], revoked: Iterable[PeerId] = ()) -> None:
        self._network = network
        self._clock = SystemClock()
        self._installed = tuple(installed)
        self._locally_revoked = frozenset(revoked)
        self._decided = UnitedTrust()
        self._admitted: dict[bytes, Root] = {}
        self._newer: dict[PeerId, PeerIdentity] = {}
        self._held: list[_Held] = []
        self._purge_at = 64
        self._on_roots: list[Callable[[], None]] = []
        self.roots: tuple[Root, ...] = self._installed
        self.revoked: frozenset[PeerId] = self._locally_revoked

    # --- judging --------------------------------------------------------------------------------

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

    def is_root(self, der: bytes) -> bool:
        """Say whether this is a root that is trusted now."""
        return any(root.der == der for root in self.roots)

    def _now_ms(self) -> int:
        return self._clock.now().wall_ms

    def _unrevoked(self, identity: PeerIdentity) -> PeerIdentity:
        if identity.peer in self.revoked:
            raise NotProven(identity.peer, REVOKED, "its membership was revoked")
        return identity

    # --- connections that rest on this ----------------------------------------------------------

    def hold(self, identity: PeerIdentity, end: End, is_over: Callable[[], bool]) -> None:
        """Have a connection ended as soon as `identity`, which it was made with, is trusted no more.

        Whatever transport took it: links and transfers of a revoked peer are cut in the call in which its
        revocation becomes known. `is_over` says whether the connection has ended by itself.
        """
        if len(self._held) >= self._purge_at:
            self._purge()
        self._held.append(_Held(identity, end, is_over))

    def renewed(self, der: bytes, known: PeerIdentity) -> PeerIdentity:
        """Take a newer certificate (DER) that the connected peer `known` has shown; return what it proves.

        Its connections then last as long as that one. NotProven if it proves nobody, or somebody else.
        """
        found = self.check(der)
        same = ("peer", "name", "role", "machine_type", "organisation")
        if any(getattr(found, what) != getattr(known, what) for what in same):
            raise NotProven(known.peer, POSSESSION, "it is for somebody else")
        if any(one.identity.peer == found.peer for one in self._held):
            self._newer[found.peer] = found
        return found

    def newest_root(self, organisation: str, unless: bytes) -> bytes:
        """Return the fingerprint of the youngest root of an organisation; `unless` if none is younger."""
        roots = {root.fingerprint: root for root in self.roots if root.organisation == organisation}
        own = roots.get(unless)
        newest = max(roots.values(), key=lambda root: root.valid_from_ms, default=None)
        younger = newest is not None and (own is None or newest.valid_from_ms > own.valid_from_ms)
        return newest.fingerprint if newest is not None and younger else unless

    def tick(self) -> None:
        """Look at the time: roots are retired at a time, and certificates lapse. Call it every second."""
        self._refresh()

    def _purge(self) -> None:
        self._held = [one for one in self._held if not one.is_over()]
        self._purge_at = max(64, 2 * len(self._held))
        present = {one.identity.peer for one in self._held}
        self._newer = {peer: identity for peer, identity in self._newer.items() if peer in present}

    def _fault(self, identity: PeerIdentity, now_ms: int) -> str:
        """Say why a connection made with `identity` is to end, or return ''."""
        if identity.peer in self.revoked:
            return REVOKED
        # Either will do: two of one second last equally long, and the newer one may be the shorter.
        faults = [self._lacks(one, now_ms) for one in (self._newer.get(identity.peer, identity), identity)]
        return "" if "" in faults else faults[0]

    def _lacks(self, identity: PeerIdentity, now_ms: int) -> str:
        if all(root.fingerprint != identity.root for root in self.roots):
            return RETIRED
        return LAPSED if now_ms > identity.valid_until_ms + LAPSE_GRACE_MS else ""

    # --- what changes ---------------------------------------------------------------------------

    def install(self, installed: Iterable[Root]) -> None:
        """Take the roots that the peer's own files hold now."""
        self._installed = tuple(installed)
        self._refresh()

    def bar(self, revoked: Iterable[PeerId]) -> None:
        """Take the peers that the peer's own file bars now."""
        self._locally_revoked = frozenset(revoked)
        self._refresh()

    def decide(self, decided: UnitedTrust) -> None:
        """Take what the members of this peer's main chains have decided by now."""
        self._decided = decided
        for fingerprint, root in decided.roots.items():
            if root.der and fingerprint not in self._admitted:
                try:
                    self._admitted[fingerprint] = read_root(root.der)
                except DecodeError:
                    continue  # a root that cannot be read lets nobody in
        self._refresh()

    def known_roots(self) -> tuple[Root, ...]:
        """Return all roots that can be read: installed and admitted ones, retired or not."""
        return tuple(
            {root.fingerprint: root for root in (*self._installed, *self._admitted.values())}.values()
        )

    def is_installed(self, fingerprint: bytes) -> bool:
        """Say whether a root is in this peer's own files."""
        return any(root.fingerprint == fingerprint for root in self._installed)

    def watch_roots(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever other roots are trusted."""
        self._on_roots.append(changed)

    def _refresh(self) -> None:
        now_ms = self._now_ms()
        known = {root.fingerprint: root for root in self.known_roots()}
        decided = self._decided.roots
        retired = [one for one in known if one in decided and decided[one].retired_ms <= now_ms]
        roots = tuple(root for fingerprint, root in known.items() if fingerprint not in retired)
        changed, self.roots = roots != self.roots, roots
        self.revoked = self._locally_revoked.union(self._decided.revoked)
        if changed:
            for tell in self._on_roots:
                tell()
        for one in tuple(self._held):
            fault = "" if one.is_over() else self._fault(one.identity, now_ms)
            if fault:
                _end(one, fault)
        self._purge()

"""Whom the members of a main chain trust, as far as it says [S3.6], and what is open about that.

A `Trust` is a value like a `Roster`. A step is in force with the block that decides it. Nothing here reads
a certificate: for the chain a root is bytes with a name, and its retirement a time that nobody compares here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from edgepool.core.ledger.support import (
    MAX_OPENED,
    first_decided,
    is_full_for,
    supporters,
    with_support,
)
from edgepool.model.codec import Wire, encode, once
from edgepool.model.crypto import sha256
from edgepool.model.fields import Hash, Height, PeerText, TimeMs
from edgepool.model.ids import PeerId
from edgepool.model.pool import MAX_MEMBERS
from edgepool.model.trust import MAX_ROOT_BYTES, AdmitRoot, RetireRoot, RevokePeer, TrustChange, TrustStep

MAX_ROOTS = 64
"""How many roots one chain knows, retired ones included: so long is it told which are not to be trusted."""
MAX_REVOKED = 4096
NEVER_MS = 2**53
"""The time of a retirement that is not decided."""

_Authors = Annotated[tuple[PeerText, ...], Meta(min_length=1, max_length=MAX_MEMBERS + 2)]
_MAX_OPEN = (MAX_MEMBERS + 2) * MAX_OPENED


class KnownRoot(Wire, frozen=True):
    """A root that the chain knows. `der` and `organisation` are empty if it was retired and never admitted.

    `retired_ms` is from when it is trusted no more, NEVER_MS if that is not decided.
    """

    fingerprint: Hash
    organisation: Annotated[str, Meta(max_length=64)]
    der: Annotated[bytes, Meta(max_length=MAX_ROOT_BYTES)]
    retired_ms: TimeMs


class Trust(Wire, frozen=True, dict=True, gc=True):
    """What a chain says of trust after its block at some height: roots and revocations, each in their order.

    `revoked` says by the block at which height; `open` has what is written and not decided, with its authors.
    """

    roots: Annotated[tuple[KnownRoot, ...], Meta(max_length=MAX_ROOTS)] = ()
    revoked: Annotated[tuple[tuple[PeerText, Height], ...], Meta(max_length=MAX_REVOKED)] = ()
    open: Annotated[tuple[tuple[TrustChange, _Authors], ...], Meta(max_length=_MAX_OPEN)] = ()

    @once
    def hash(self) -> bytes:
        """The 32-byte SHA-256 of the encoded value."""
        return sha256(encode(self))

    def root(self, fingerprint: bytes) -> KnownRoot | None:
        """Return what is decided of a root, or None."""
        return next((one for one in self.roots if one.fingerprint == fingerprint), None)

    def is_revoked(self, peer: str) -> bool:
        """Say whether the revocation of `peer` is decided."""
        return any(one == peer for one, _ in self.revoked)

    def to_be_revoked(self) -> list[tuple[str, tuple[PeerId, ...]]]:
        """Return whose revocation is open, each with who has written it."""
        return [(change.step.peer, by) for change, by in self.open if isinstance(change.step, RevokePeer)]

    def misfit(self, step: TrustStep) -> str:
        """Say why a step cannot be decided after all that is decided, or return ''."""
        match step:
            case RevokePeer(peer):
                if self.is_revoked(peer):
                    return f"{peer} is revoked already"
                full = len(self.revoked) >= MAX_REVOKED
                return f"this chain has revoked {MAX_REVOKED} peers and can revoke no more" if full else ""
            case AdmitRoot(_, der):
                known = self.root(sha256(der))
                if known is not None:
                    settled = "admitted" if known.retired_ms == NEVER_MS else "retired"
                    return f"the root is {settled} already"
            case RetireRoot(fingerprint, from_ms):
                known = self.root(fingerprint)
                if known is not None:
                    later = known.retired_ms <= from_ms
                    return "the root is retired already, not later than that" if later else ""
        return (
            f"this chain knows {MAX_ROOTS} roots and can know no more" if len(self.roots) >= MAX_ROOTS else ""
        )

    def supporters(self, change: TrustChange) -> tuple[PeerId, ...]:
        """Return who has written `change`, if it is open."""
        return supporters(self.open, change)

    def full_for(self, author: PeerId) -> bool:
        """Say whether `author` can open no other change, since others support all that it has opened."""
        return is_full_for(self.open, author)

    def supported(
        self, author: PeerId, change: TrustChange, voters: Collection[PeerId], height: int
    ) -> Trust:
        """Return what comes of it when `author` writes `change` in block `height`, on which `voters` vote."""
        return replace(self, open=with_support(self.open, author, change)).counted(voters, height)

    def counted(self, voters: Collection[PeerId], height: int) -> Trust:
        """Return what this becomes when all is in force that a quorum of `voters` has written."""
        trust = self
        while (change := first_decided(trust.open, voters)) is not None:
            trust = trust._after(change.step, height)
            still = tuple(pair for pair in trust.open if not trust.misfit(pair[0].step))
            trust = replace(trust, open=still)
        return trust

    def problem(self) -> str:
        """Say why no blocks can have led to this, as far as later blocks rely on it, or return ''."""
        prints = [root.fingerprint for root in self.roots]
        peers = [peer for peer, _ in self.revoked]
        if len(dict.fromkeys(prints)) != len(prints) or len(dict.fromkeys(peers)) != len(peers):
            return "it decides about a root or a peer twice"
        if any(root.der and sha256(root.der) != root.fingerprint for root in self.roots):
            return "a root has another fingerprint than its own"
        if any(self.misfit(change.step) for change, _ in self.open):
            return "a change of trust is open that cannot be decided"
        return ""

    def _after(self, step: TrustStep, height: int) -> Trust:
        match step:
            case RevokePeer(peer):
                return replace(self, revoked=(*self.revoked, (peer, height)))
            case AdmitRoot(organisation, der):
                known = KnownRoot(sha256(der), organisation, der, NEVER_MS)
                return replace(self, roots=(*self.roots, known))
            case RetireRoot(fingerprint, from_ms):
                known = self.root(fingerprint) or KnownRoot(fingerprint, "", b"", from_ms)
                others = tuple(one for one in self.roots if one.fingerprint != fingerprint)
                return replace(self, roots=(*others, replace(known, retired_ms=from_ms)))


def state_root(trust: Trust, rest: bytes) -> bytes:
    """Return the root of a state that says `trust`, and else what the hash `rest` (32 bytes) stands for."""
    return sha256(trust.hash + rest)


@dataclass(frozen=True, slots=True)
class UnitedTrust:
    """What all main chains of a peer say together: whoever one of them does not trust is not trusted."""

    roots: dict[bytes, KnownRoot] = field(default_factory=dict)
    revoked: dict[PeerId, None] = field(default_factory=dict)

    def steps_missing_in(self, trust: Trust) -> list[TrustStep]:
        """Return what is decided elsewhere and neither decided by `trust` nor impossible there."""
        steps: list[TrustStep] = [RevokePeer(peer) for peer in self.revoked]
        for root in self.roots.values():
            if root.der:
                steps.append(AdmitRoot(root.organisation, root.der))
            if root.retired_ms != NEVER_MS:
                steps.append(RetireRoot(root.fingerprint, root.retired_ms))
        return [step for step in steps if not trust.misfit(step)]


def united(trusts: Iterable[Trust]) -> UnitedTrust:
    """Return what several chains say together; a root is retired from the earliest time that one names."""
    found = UnitedTrust()
    for trust in trusts:
        found.revoked.update((PeerId(peer), None) for peer, _ in trust.revoked)
        for root in trust.roots:
            other = found.roots.get(root.fingerprint, root)
            der, organisation = root.der or other.der, root.organisation or other.organisation
            retired_ms = min(root.retired_ms, other.retired_ms)
            found.roots[root.fingerprint] = KnownRoot(root.fingerprint, organisation, der, retired_ms)
    return found

"""Pools and their birth certificate, the genesis [S3.4, S3.5].

A pool is a group of peers with a chain of its own. The coordinator invites; each member answers
with its first beacon tip and a signature; invitation and answers together are the genesis, and the
chain's id is its hash. Whoever holds a genesis can check that every member agreed to be in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from edgepool.model.codec import Wire, encode
from edgepool.model.crypto import Signer, sha256, verify
from edgepool.model.fields import Hash, Name, PeerText, Signature, TimeMs
from edgepool.model.identity import Role
from edgepool.model.ids import ChainId, PeerId

MAX_MEMBERS = 30
MAX_OBSERVERS = 8
BEACON_LENGTH = 16384
"""How many blocks a member can pack before its beacon is used up."""
PoolKind = Literal["fixed", "manufacturing"]


class Member(Wire, frozen=True):
    """A peer in a pool: who, what it can do, where it listens (multiaddrs), and its role.

    The role is that of its certificate, which its partners have seen when they accept the pool.
    """

    peer: PeerText
    name: Name
    machine_type: Annotated[str, Meta(max_length=64)]
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=8)]
    role: Role = "machine"


class Invitation(Wire, frozen=True):
    """The coordinator's plan of a pool. Members vote; observers only follow the chain.

    `combination` is the sequence of operations of the route that a manufacturing pool serves
    (the paper's Mg); it is empty for a fixed pool. A fixed pool's chain is a main chain, a
    manufacturing pool's a sub-chain.
    """

    network: Name
    name: Name
    kind: PoolKind
    coordinator: PeerText
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    observers: Annotated[tuple[Member, ...], Meta(max_length=MAX_OBSERVERS)]
    combination: Annotated[tuple[Name, ...], Meta(max_length=32)]
    created_ms: TimeMs
    nonce: Annotated[int, Meta(ge=0, le=2**53)]

    @property
    def hash(self) -> bytes:
        """The 32-byte hash that members sign."""
        return sha256(encode(self))

    def has_ended(self, members: int) -> bool:
        """Say whether a pool of this plan is over with so many members: all have left but one, who cannot."""
        return self.kind == "manufacturing" and members == 1 < len(self.members)

    def people(self) -> tuple[Member, ...]:
        """Return members and observers."""
        return self.members + self.observers


class Acceptance(Wire, frozen=True):
    """A member's yes to an invitation, with the tip of its beacon chain for this pool."""

    member: PeerText
    beacon_tip: Hash
    signature: Signature

    def authentic(self, invitation: Invitation) -> bool:
        """Say whether the signature is the member's over this invitation and tip."""
        return verify(self.member, "accept", [invitation.hash, self.beacon_tip], self.signature)


class Genesis(Wire, frozen=True):
    """A formed pool: the invitation, signed by the coordinator, and every member's acceptance.

    `acceptances` stand in the order of `invitation.members`.
    """

    invitation: Invitation
    coordinator_signature: Signature
    acceptances: Annotated[tuple[Acceptance, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]

    @property
    def chain(self) -> ChainId:
        """The id of the pool's chain. It does not depend on how signatures came out."""
        tips = [acceptance.beacon_tip for acceptance in self.acceptances]
        return ChainId(sha256(encode([self.invitation, tips])).hex()[:40])

    @property
    def members(self) -> tuple[PeerId, ...]:
        """The peer ids of the voting members, in their fixed order."""
        return tuple(member.peer for member in self.invitation.members)

    def problem(self, network: str) -> str:
        """Say what is wrong with this genesis, or return '' if nothing is.

        Whether its coordinator may form pools is for the caller to judge.
        """
        invitation = self.invitation
        if invitation.network != network:
            return f"it is for network '{invitation.network}', not '{network}'"
        people = [member.peer for member in invitation.people()]
        if len(set(people)) != len(people):
            return "a peer stands in it twice"
        if tuple(a.member for a in self.acceptances) != self.members:
            return "its acceptances are not those of its members, in their order"
        if not verify(invitation.coordinator, "invite", [invitation.hash], self.coordinator_signature):
            return "the coordinator's signature does not hold"
        for acceptance in self.acceptances:
            if not acceptance.authentic(invitation):
                return f"the signature of member {acceptance.member} does not hold"
        return ""


def members_hash(roster: Sequence[Member]) -> bytes:
    """Return the 32-byte hash by which headers name a roster: the ordered members with a vote."""
    return sha256(encode(["edgepool/1/members", tuple(roster)]))


def accept(signer: Signer, invitation: Invitation, beacon_tip: bytes) -> Acceptance:
    """Return `signer`'s acceptance of `invitation`."""
    signature = signer.sign("accept", [invitation.hash, beacon_tip])
    return Acceptance(signer.peer, beacon_tip, signature)


def sign_invitation(signer: Signer, invitation: Invitation) -> bytes:
    """Return the coordinator's signature over `invitation`."""
    return signer.sign("invite", [invitation.hash])

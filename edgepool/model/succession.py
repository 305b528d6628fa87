"""One peer, two keys: what both sign when one follows the other on a chain [S3.6]."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire
from edgepool.model.crypto import Signer, verify
from edgepool.model.fields import MaybeHash, PeerText, Signature
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis, Member

SUCCESSION_DOMAIN = "succession"


def succession_terms(
    network: str, chain: ChainId, number: int, outgoing: PeerId, incoming: Member, beacon_tip: bytes
) -> list[object]:
    """Return what both keys of a peer sign (domain 'succession') whose new key is to follow its old one.

    `number` is that of the change of the members, and 0 with an empty tip for who has no vote.
    """
    return [network, chain, number, outgoing, incoming, beacon_tip]


class KeySuccession(Wire, tag="succession", frozen=True):
    """The author, who observes or coordinates the pool and has no vote, goes on as `incoming`.

    That is the author itself under a new key, whose `signature` is over `succession_terms`; the old key has
    signed the record. It is in force from the next height on. Members do so by a MembershipChange.
    """

    incoming: Member
    signature: Signature

    def adoption(self, former: PeerId) -> Adoption:
        """Return what the new key has said of the chain, `former` being the author."""
        return Adoption(0, former, self.incoming, b"", self.signature)


class Adoption(Wire, frozen=True):
    """A key has taken the place of `former` on a chain, and has signed so: the chain is its own.

    For who trusts the new key it stands for the old coordinator's signature on the genesis.
    """

    number: Annotated[int, Meta(ge=0, le=2**31)]
    former: PeerText
    incoming: Member
    beacon_tip: MaybeHash
    signature: Signature

    def holds(self, network: str, chain: ChainId) -> bool:
        """Say whether the new key has signed that; costs a signature check."""
        terms = succession_terms(network, chain, self.number, self.former, self.incoming, self.beacon_tip)
        return verify(self.incoming.peer, SUCCESSION_DOMAIN, terms, self.signature)


def key_succession(new: Signer, network: str, chain: ChainId, old: PeerId, member: Member) -> KeySuccession:
    """Return the record by which `old`, who has no vote, goes on as `member`, whose key is `new`."""
    terms = succession_terms(network, chain, 0, old, member, b"")
    return KeySuccession(member, new.sign(SUCCESSION_DOMAIN, terms))


def is_trusted(
    genesis: Genesis, adoption: Adoption | None, network: str, coordinators: Collection[str]
) -> bool:
    """Say whether a pool is of a coordinator among `coordinators`: by its genesis, or by its adoption.

    Costs a signature check at most; what else the genesis says is for the caller to judge.
    """
    who = genesis.invitation.coordinator if adoption is None else adoption.incoming.peer
    return who in coordinators and (adoption is None or adoption.holds(network, genesis.chain))

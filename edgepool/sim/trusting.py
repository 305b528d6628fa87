"""Whom simulated peers let in, and what their owners want of trust: revocations, roots that come and go.

A peer's door follows what its node tells it, as that of a real peer does: at a start, and whenever it is told
that the main chains have decided something. What the judge knows of trust comes from the blocks alone.
"""

from __future__ import annotations

import datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edgepool.core.machine import ChangeTrust, PeerDown
from edgepool.model.crypto import sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.trust import (
    AdmitRoot,
    RetireRoot,
    RevokePeer,
    TrustChange,
    TrustStep,
    own_revocation,
)
from edgepool.sim.plan import Fault

if TYPE_CHECKING:
    from edgepool.sim.chaos import Chaos
    from edgepool.sim.world import SimPeer

ROOTS = 4
"""How many other organisations there are."""
REASON = "its owner wants it"
_BEGIN = datetime.datetime(2023, 1, 1, tzinfo=datetime.UTC)


@lru_cache(maxsize=ROOTS)
def root_of(number: int) -> AdmitRoot:
    """Return the admission of one organisation's root: the same bytes in every process."""
    key = Ed25519PrivateKey.from_private_bytes(sha256(f"root {number}".encode()))
    organisation = f"works {number}"
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1 + number)
        .not_valid_before(_BEGIN)
        .not_valid_after(_BEGIN + datetime.timedelta(days=36_500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    return AdmitRoot(organisation, certificate.public_bytes(Encoding.DER))


class Doors:
    """The doors of all peers of `world`: whom each lets in no more."""

    def __init__(self, world: Chaos) -> None:
        self._world = world
        self._shut: dict[PeerId, frozenset[PeerId]] = {}

    def admits(self, peer: PeerId, other: PeerId) -> bool:
        """Say whether `peer` lets `other` in."""
        return other not in self._shut.get(peer, ())

    def follow(self, peer: SimPeer) -> None:
        """`peer` hears what its main chains have decided: whoever is revoked is cut off at once."""
        world = self._world
        self._shut[peer.id] = shut = frozenset(peer.node.trust.revoked)
        for other in sorted(shut):
            if other in world.peers and world.drop_link(peer.id, other):
                for one, gone in ((peer.id, other), (other, peer.id)):
                    world.at(world.now_ms, partial(world.step, world.peers[one], PeerDown(gone)))


class TrustWishes:
    """What honest owners in `world` want of trust, on its main chain."""

    def __init__(self, world: Chaos) -> None:
        self._world = world
        self._steps: dict[TrustStep, PeerId] = {}
        self.revoked: dict[str, None] = {}
        """Whom somebody wants revoked, decided or not."""

    def inject(self, fault: Fault) -> bool:
        """Let an owner propose a step of trust; False if nobody careful would."""
        world, chain = self._world, self._world.chains[0]
        by = world.people[int(str(fault.arguments["by"]))]
        step: TrustStep
        match fault.kind:
            case "revoke":
                peer = world.people[int(str(fault.arguments["peer"]))]
                if not world.changes.may_be_revoked(peer.id):
                    return False
                step = RevokePeer(peer.id)
                if fault.arguments["own"]:
                    by, step = peer, own_revocation(peer.signer, peer.settings.network)
            case "admit-root":
                step = root_of(int(str(fault.arguments["root"])) % ROOTS)
            case _:
                root = sha256(root_of(int(str(fault.arguments["root"])) % ROOTS).root)
                step = RetireRoot(root, 1 + int(str(fault.arguments["from_ms"])))
        proposer = world.changes.proposer(chain, by)
        if proposer is None or step in self._steps:
            return False
        if isinstance(step, RevokePeer) and step.peer == proposer.id and not step.signature:
            return False
        self.want(step, proposer)
        world.ask(proposer, ChangeTrust(chain, TrustChange(step, REASON)))
        return True

    def want(self, step: TrustStep, proposer: SimPeer) -> None:
        """Note that the owner of `proposer` wants a step."""
        judge = self._world.judge
        self._steps[step] = proposer.id
        judge.trust.wanted[step] = None
        if isinstance(step, RevokePeer):
            self.revoked[step.peer] = None
            assert judge.wishes is not None
            for chain in self._world.chains:
                judge.wishes[chain, step.peer, ""] = None

    def approval(self, peer: SimPeer, chain: ChainId) -> ChangeTrust | None:
        """Return the word of the owner of `peer` for a step on `chain` that some other owner wants."""
        for change, authors in peer.node.chains[chain].state.trust.open:
            mine = isinstance(change.step, RevokePeer) and change.step.peer == peer.id
            by = self._world.judge.oracles[chain].person(self._steps.get(change.step, PeerId("")))
            if peer.id not in authors and not mine and by in authors:
                return ChangeTrust(chain, change)
        return None

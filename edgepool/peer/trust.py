"""Whom a peer trusts, as its owner sees it and changes it [S3.6]; its doors follow its main chains."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edgepool.core.chain import Chain
from edgepool.core.ledger.trust import NEVER_MS, Trust
from edgepool.core.machine import ChangeTrust, RecordRef
from edgepool.core.trusting import root_problem
from edgepool.errors import DecodeError, EdgepoolError, LocalError
from edgepool.model.codec import encode
from edgepool.model.credential import Root
from edgepool.model.crypto import sha256
from edgepool.model.ids import ChainId, PeerId, public_key_of, short
from edgepool.model.trust import AdmitRoot, RetireRoot, RevokePeer, TrustChange, TrustStep
from edgepool.model.vote import quorum
from edgepool.peer.lifeview import RootLife, days_left
from edgepool.peer.trustview import OpenTrust, RevokedPeer, RootStatus, StepStanding, TrustStatus
from edgepool.transport.identity import Identity

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

TIMEOUT_MS = 30_000
FORMER_KEY = "its key was changed"
"""Why a former key is revoked."""
ID_DIGITS = 12
"""By so many hexadecimal digits an open change of trust is named."""

_log = logging.getLogger(__name__)


class Trusting:
    """Keeps what `identity` trusts up to date with the main chains of one peer, and changes what they say."""

    def __init__(self, peer: Peer, identity: Identity) -> None:
        self._peer = peer
        self._identity = identity
        self._ending: dict[PeerId, None] = {}

    @property
    def revoked(self) -> frozenset[PeerId]:
        """Who is not let in whatever its certificate says."""
        return self._identity.trust.revoked

    def is_own(self, der: bytes) -> bool:
        """Say whether a root is trusted here and of this peer's own organisation."""
        own = self._identity.certificate.organisation
        return any(root.der == der and root.organisation == own for root in self._identity.trust.roots)

    def own_root(self) -> bytes:
        """Return the fingerprint of the root that has issued this peer's own certificate."""
        return self._identity.certificate.root

    def own_roots(self) -> list[Root]:
        """Return the trusted roots of this peer's own organisation."""
        own = self._identity.certificate.organisation
        return [root for root in self._identity.trust.roots if root.organisation == own]

    def lives(self, now_ms: int) -> list[RootLife]:
        """Return how long each trusted root lasts."""
        return [
            RootLife(
                fingerprint=root.fingerprint.hex(),
                organisation=root.organisation,
                own=root.fingerprint == self.own_root(),
                valid_until_ms=root.valid_until_ms,
                days_left=days_left(root.valid_until_ms, now_ms),
            )
            for root in self._identity.trust.roots
        ]

    def retired_ms(self, root: bytes) -> int:
        """Return from when a root (its fingerprint) is trusted no more, as decided; 0 if that is not."""
        known = self._peer.node.trust.roots.get(root)
        return 0 if known is None or known.retired_ms == NEVER_MS else max(1, known.retired_ms)

    def follow(self) -> None:
        """Trust whom the main chains say by now; who is trusted no more is cut off in this call."""
        self._identity.trust.decide(self._peer.node.trust)
        self._peer.forget(self._identity.trust.revoked)

    async def change(
        self, step: TrustStep, *, reason: str = "", chain: ChainId | None = None, timeout_ms: int = TIMEOUT_MS
    ) -> RecordRef:
        """Propose on a main chain that a root is admitted or retired, or a peer revoked.

        Returns where this peer's own word stands. Decided, and in force at once, when more than two thirds of
        the members have said the same; the coordinator carries it to its other main chains.
        """
        problem = root_problem(step)
        if problem:
            raise LocalError(f"the root cannot be admitted: {problem}")
        where = self._main_chain(chain)
        ref = await self._peer.command(ChangeTrust(where.id, TrustChange(step, reason)), timeout_ms)
        assert isinstance(ref, RecordRef)
        return ref

    async def approve(self, change: str = "", timeout_ms: int = TIMEOUT_MS) -> RecordRef:
        """Approve an open change of trust by the beginning of its id ('': the only one)."""
        open_ = [
            (chain, one, authors)
            for chain in self._main_chains()
            for one, authors in chain.state.trust.open
            if self._peer.id not in authors and trust_change_id(one).startswith(change)
        ]
        if len(open_) != 1:
            what = "no change" if not open_ else f"{len(open_)} changes"
            raise LocalError(
                f"{what} of trust that this peer has not approved {'is' if not open_ else 'are'} open "
                f"under '{change[:40]}': 'edgepool org list' shows them"
            )
        chain, found, _ = open_[0]
        ref = await self._peer.command(ChangeTrust(chain.id, found), timeout_ms)
        assert isinstance(ref, RecordRef)
        return ref

    def is_accused(self, peer: PeerId) -> bool:
        """Say whether a coordinator asks for the revocation of `peer` on a main chain, and it is open."""
        return any(
            accused == peer and chain.state.coordinator in by
            for chain in self._main_chains()
            for accused, by in chain.state.trust.to_be_revoked()
        )

    def hindrance(self, who: PeerId) -> str:
        """Say why the revocation of `who` cannot be decided as things stand, and what to do, or return ''.

        A pool needs more than two thirds of its members, and `who` has no part in its own revocation: in a
        pool of fewer than four that leaves too few.
        """
        linked = [self._peer.id, *(one.peer for one in self._peer.connected())]
        for chain in self._spoken():
            members, pool = chain.state.members, chain.genesis.invitation.name
            others = [member for member in members if member != who]
            if len(others) < quorum(len(members)) and who in members:
                name = self._names().get(who, who)
                return (
                    f"pool {pool} has {len(members)} members and needs all of them, {name} too, to decide "
                    f"that {name} is revoked: admit witnesses first, until it has four ('edgepool init "
                    "--role witness'); if that cannot be decided either, form a new pool without it"
                )
            away = [self._names().get(one, one) for one in others if one not in linked]
            if len(others) - len(away) < quorum(len(members)):
                return (
                    f"pool {pool} needs {quorum(len(members))} of {len(members)} members to decide that, and "
                    f"{', '.join(away)} cannot be reached: start them, or mend the network to them"
                )
        return ""

    def standing(self, step: TrustStep) -> list[StepStanding]:
        """Return how far each main chain is with `step` on which this peer has a word; LocalError if none.

        Whoever has written the same step counts, whatever reason it gave.
        """
        self._main_chain(None)
        return [self._stands(chain, step) for chain in self._spoken()]

    async def settle(self, step: TrustStep, reason: str, timeout_ms: int = TIMEOUT_MS) -> bool:
        """Write this peer's word for `step` on each main chain that lacks it; say whether all have decided.

        Raises what `change` raises, for the first chain that cannot take it.
        """
        self._main_chain(None)
        for chain in self._spoken():
            found = self._stands(chain, step)
            if not found.decided and not found.written:
                await self.change(step, reason=reason, chain=chain.id, timeout_ms=timeout_ms)
        return all(self._stands(chain, step).decided for chain in self._spoken())

    async def end_former(self, peer: PeerId, revocation: RevokePeer) -> None:
        """Have a former key of `peer` revoked, which has signed that, where a chain says whose it was.

        `peer` has no word there itself. What fails is asked for again.
        """
        if peer in self._ending:
            return
        self._ending[peer] = None
        try:
            for chain in self._spoken():
                stands = self._stands(chain, revocation)
                is_former = chain.state.heir(revocation.peer) == peer != revocation.peer
                if is_former and revocation.signature and not stands.decided and not stands.written:
                    await self.change(revocation, reason=FORMER_KEY, chain=chain.id)
        except EdgepoolError as error:
            _log.info("the former key of %s is not revoked yet: %s", peer, error)
        finally:
            del self._ending[peer]

    def _spoken(self) -> list[Chain]:
        """Return the main chains on which this peer has a word."""
        me = self._peer.id
        return [
            chain
            for chain in self._main_chains()
            if me in chain.state.members or me == chain.state.coordinator
        ]

    def _stands(self, chain: Chain, step: TrustStep) -> StepStanding:
        state, names = chain.state, self._names()
        authors = {one for change, by in state.trust.open if change.step == step for one in by}
        return StepStanding(
            pool=chain.genesis.invitation.name,
            decided=_is_decided(state.trust, step),
            written=self._peer.id in authors,
            approved_by=[names.get(one, one) for one in state.members if one in authors],
            missing=[names.get(one, one) for one in state.members if one not in authors],
            needed=quorum(len(state.members)),
        )

    def status(self) -> TrustStatus:
        """See Peer.trust."""
        own, decided = self._identity.certificate, self._peer.node.trust
        trusted = self._identity.trust
        roots = {root.fingerprint: root for root in trusted.known_roots()}
        prints = dict.fromkeys((*roots, *decided.roots))
        now_trusted = {root.fingerprint for root in trusted.roots}
        shown = []
        for fingerprint in prints:
            root, known = roots.get(fingerprint), decided.roots.get(fingerprint)
            never = known is None or known.retired_ms == NEVER_MS
            shown.append(
                RootStatus(
                    fingerprint=fingerprint.hex(),
                    organisation=root.organisation if root else known.organisation if known else "",
                    own=fingerprint == own.root,
                    installed=trusted.is_installed(fingerprint),
                    admitted=known is not None and bool(known.der),
                    trusted=fingerprint in now_trusted,
                    retired_ms=0 if never or known is None else max(1, known.retired_ms),
                    valid_until_ms=root.valid_until_ms if root else 0,
                )
            )
        return TrustStatus(
            organisation=own.organisation,
            roots=shown,
            revoked=self._revoked(),
            open=[
                self._open(chain, change, authors)
                for chain in self._main_chains()
                for change, authors in chain.state.trust.open
            ],
        )

    def meant(self, who: str) -> PeerId:
        """Return the peer that a name or a peer id means; LocalError if it is not known, or several are."""
        try:
            public_key_of(PeerId(who))
        except DecodeError:
            found = [peer for peer, name in self._names().items() if name == who]
            if len(found) == 1:
                return found[0]
            fault = "no peer" if not found else f"{len(found)} peers"
            raise LocalError(
                f"{fault} of the pools of {self._peer.name} {'is' if not found else 'are'} called "
                f"'{who[:80]}': write a peer id"
            ) from None
        return PeerId(who)

    def _revoked(self) -> list[RevokedPeer]:
        names, shown = self._names(), dict[str, RevokedPeer]()
        for chain in self._main_chains():
            pool = chain.genesis.invitation.name
            for peer, height in chain.state.trust.revoked:
                name = names.get(PeerId(peer), "")
                shown.setdefault(peer, RevokedPeer(peer=peer, name=name, pool=pool, height=height))
        for peer in self._identity.trust.revoked:
            one = RevokedPeer(peer=peer, name=names.get(peer, ""), pool="", height=0)
            shown.setdefault(peer, one)
        return list(shown.values())

    def _open(self, chain: Chain, change: TrustChange, authors: tuple[PeerId, ...]) -> OpenTrust:
        members, names = chain.state.members, self._names()
        return OpenTrust(
            id=trust_change_id(change),
            pool=chain.genesis.invitation.name,
            says=trust_text(change, names),
            proposer=authors[0],
            proposer_name=names.get(authors[0], ""),
            approved_by=[names.get(author, author) for author in authors if author in members],
            needed=quorum(len(members)),
            of=len(members),
            approved=self._peer.id in authors,
        )

    def _names(self) -> dict[PeerId, str]:
        names = {one.peer: one.name for one in self._peer.connected()} | {self._peer.id: self._peer.name}
        for chain in self._peer.node.chains.values():
            names |= chain.rosters.names()
        return names

    def _main_chains(self) -> list[Chain]:
        chains = self._peer.node.chains.values()
        return [chain for chain in chains if chain.genesis.invitation.kind == "fixed"]

    def _main_chain(self, wanted: ChainId | None) -> Chain:
        mains = [chain for chain in self._main_chains() if wanted in (None, chain.id)]
        if not mains:
            raise LocalError(
                f"peer {self._peer.name} is in no fixed pool{' with that chain' if wanted else ''}: only "
                "the members of fixed pools, and their coordinator, say whom to trust"
            )
        return mains[0]


def _is_decided(trust: Trust, step: TrustStep) -> bool:
    """Say whether a chain has decided a step, or more than it asks for."""
    match step:
        case RevokePeer(peer):
            return trust.is_revoked(peer)
        case AdmitRoot(_, der):
            return trust.root(sha256(der)) is not None
        case RetireRoot(root, from_ms):
            known = trust.root(root)
            return known is not None and known.retired_ms <= from_ms


def trust_change_id(change: TrustChange) -> str:
    """Return the hexadecimal digits by which people name an open change of trust."""
    return sha256(encode(change)).hex()[:ID_DIGITS]


def trust_text(change: TrustChange, names: Mapping[PeerId, str]) -> str:
    """Return a change of trust in a clause."""
    match change.step:
        case AdmitRoot(organisation, der):
            what = f"trust the members of '{organisation}', root {sha256(der).hex()[:16]}"
        case RetireRoot(root, from_ms):
            what = f"trust root {root.hex()[:16]} no more from {_time_text(from_ms)} on"
        case RevokePeer(peer):
            what = f"revoke {named(PeerId(peer), names) if names.get(PeerId(peer)) else peer}"
    return what + (f" ({change.reason})" if change.reason else "")


def named(peer: PeerId, names: Mapping[PeerId, str]) -> str:
    """Return a peer's name, if it has one, and of its id what tells one of its keys from another."""
    return f"{names[peer]} ({short(peer)})" if names.get(peer) else short(peer)


def _time_text(time_ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"the {time_ms}th millisecond after 1970"

"""A peer's part in who is in its pools [S3.5, S3.6]: forming them, changing them, saying who is in them.

People are meant by name or by peer id. A name counts if exactly one peer has it; else the peer id is
asked for.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgepool.core.ledger.succession import known_heir
from edgepool.core.machine import ApproveChange, ChangeMembers, FormPool, RecordRef
from edgepool.core.people import has_ended
from edgepool.errors import DecodeError, LocalError, Refused, Unavailable
from edgepool.model.block import CertifiedBlock, Handover
from edgepool.model.ids import ChainId, PeerId, public_key_of, short, split_address, with_peer
from edgepool.model.pool import Genesis, Invitation, Member, PoolKind
from edgepool.model.record import MembershipChange
from edgepool.model.vote import quorum
from edgepool.peer.values import (
    BlockAdded,
    DecidedChange,
    FormerMember,
    OpenChange,
    PeerEvent,
    PoolMember,
    PoolMembers,
    RecordCommitted,
    RosterChanged,
)
from edgepool.runtime.ports import Clock, Transport

if TYPE_CHECKING:
    from edgepool.core.chain import Chain
    from edgepool.peer.peer import Peer

REACH_S = 10.0
"""How long a newcomer at a given address may take to be linked."""
_POLL_S = 0.02


class _Wish(NamedTuple):
    """Who is to leave and who is to come; '' for nobody."""

    outgoing: str
    incoming: str


class Membership:
    """Forms and changes the pools of one peer, and tells who is in them."""

    def __init__(self, peer: Peer, transport: Transport, clock: Clock) -> None:
        self._peer = peer
        self._transport = transport
        self._clock = clock

    async def form(
        self,
        name: str,
        kind: PoolKind,
        members: Sequence[Member],
        combination: Sequence[str],
        observers: Sequence[Member],
        timeout_ms: int,
    ) -> Genesis:
        """See Peer.form_pool."""
        invitation = Invitation(
            self._peer.settings.network,
            name,
            kind,
            self._peer.id,
            tuple(members),
            tuple(observers),
            tuple(combination),
            self._clock.now().wall_ms,
            secrets.randbits(53),
        )
        genesis = await self._peer.command(FormPool(invitation), timeout_ms)
        assert isinstance(genesis, Genesis)
        return genesis

    async def change(
        self,
        chain: ChainId,
        admit: Member | PeerId | str | None,
        exclude: PeerId | str | None,
        reason: str,
        address: str,
        timeout_ms: int,
    ) -> RecordRef:
        """See Peer.change_members."""
        known = self._chain(chain)
        outgoing = self._present(known, exclude) if exclude else PeerId("")
        incoming = await self._newcomer(admit, address) if admit else None
        if incoming is None and not outgoing:
            raise LocalError("nobody is named: say whom to admit, whom to exclude, or both")
        wish = _Wish(outgoing, incoming.peer if incoming is not None else "")
        events = self._peer.watch()
        command = ChangeMembers(chain, outgoing, incoming, reason)
        late = Unavailable(f"the change was not on its chain within {timeout_ms / 1000:g} s; it still may be")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                ref = await self._say(command, wish, events, timeout_ms)
        except TimeoutError:
            raise late from None
        assert isinstance(ref, RecordRef)
        return ref

    async def approve(self, chain: ChainId, proposer: PeerId | str, timeout_ms: int) -> RecordRef:
        """See Peer.approve_change."""
        ref = await self._peer.command(ApproveChange(chain, self._proposer(chain, proposer)), timeout_ms)
        assert isinstance(ref, RecordRef)
        return ref

    # --- what is --------------------------------------------------------------------------------

    def handovers(self, chain: ChainId) -> tuple[Handover, ...]:
        """Return what leads from the genesis of a chain to its present roster."""
        return tuple(self._chain(chain).handovers)

    def view(self, chain: ChainId) -> PoolMembers:
        """See Peer.members."""
        known = self._chain(chain)
        state, invitation = known.state, known.genesis.invitation
        rosters = known.rosters
        since, names = rosters.since(), self._names(known)
        convicted = state.convicted()
        return PoolMembers(
            chain=chain,
            name=invitation.name,
            kind=invitation.kind,
            height=state.height,
            voting=known.member,
            quorum=quorum(len(state.roster)),
            members=[
                PoolMember(
                    peer=one.peer,
                    name=one.name,
                    machine_type=one.machine_type,
                    since_height=since.get(one.peer, 1),
                    linked=self._linked(one.peer),
                    convicted=one.peer in convicted,
                )
                for one in state.roster
            ],
            observers=[one.name for one in state.observers],
            decided=_decided(state.pending_change, state.height, names),
            open=[self._open(known, change, authors, names) for change, authors in state.open_changes()],
            convicted=[names.get(peer, peer) for peer in convicted],
            former=[
                FormerMember(
                    peer=one.member.peer,
                    name=one.member.name,
                    until_height=one.last_height,
                    heir=known_heir(state, one.member.peer),
                )
                for one in rosters.former()
            ],
            ended=has_ended(state),
        )

    def member(self, peer: PeerId) -> Member | None:
        """See Peer.member."""
        own = self._peer
        if peer == own.id:
            return Member(peer, own.name, own.settings.machine_type, own.addresses, own.settings.role)
        identity = next((one for one in own.connected() if one.peer == peer), None)
        addresses = own.node.rendezvous.said.get(peer)
        if identity is None or addresses is None:
            return own.node.directory.member(peer)
        return Member(peer, identity.name, identity.machine_type, addresses, identity.role)

    def pick(self, chain: ChainId | None) -> ChainId:
        """Return `chain`, or the first fixed pool's, or the only one's; LocalError if there is none."""
        if chain is not None:
            return chain
        choice = self._peer.node.directory.main_chains() or self._peer.chains
        if not choice:
            raise LocalError(
                f"peer {self._peer.name} is in no pool yet: a coordinator forms pools, and admits to them "
                "('edgepool member admit'); a program waits for PoolEntered in watch()"
            )
        return choice[0]

    def told_by(self, chain: ChainId, certified: CertifiedBlock) -> list[PeerEvent]:
        """Return what watchers are told of a block that stands."""
        height = certified.block.header.height
        events: list[PeerEvent] = [BlockAdded(chain, certified)]
        for index, record in enumerate(certified.block.records):
            events.append(RecordCommitted(RecordRef(chain, height, index), record))
        changed = self._changed_by(chain, certified)
        return events if changed is None else [*events, changed]

    def _changed_by(self, chain: ChainId, certified: CertifiedBlock) -> RosterChanged | None:
        """Return how a block that stands changes who votes behind it, or None if it does not."""
        header = certified.block.header
        if header.members_hash == header.next_members_hash:
            return None
        known = self._chain(chain)
        people = {one.peer: one for one in known.rosters.everybody()}
        for handover in reversed(known.handovers):
            if handover.header.height == header.height:
                joined = (handover.incoming,) if handover.incoming is not None else ()
                left = (people[handover.outgoing],) if handover.outgoing in people else ()
                same = known_heir(known.state, handover.outgoing) != ""
                return RosterChanged(chain, header.height + 1, joined, left, same)
        return None

    # --- who is meant ---------------------------------------------------------------------------

    def _chain(self, chain: ChainId) -> Chain:
        known = self._peer.node.chains.get(chain)
        if known is None:
            raise LocalError(f"peer {self._peer.name} is not on chain {chain}")
        return known

    def _names(self, known: Chain) -> dict[PeerId, str]:
        names = {one.peer: one.name for one in self._peer.connected()} | {self._peer.id: self._peer.name}
        coming = {member.peer: member.name for member in known.state.newcomers()}
        return names | coming | known.rosters.names()

    def _present(self, known: Chain, who: str) -> PeerId:
        """Return the member that `who` means; LocalError says who the members are."""
        members = [(member.peer, member.name) for member in known.state.next_roster]
        found = meant(who, members)
        if found is None:
            names = ", ".join(name for _, name in members)
            pool = known.genesis.invitation.name
            raise LocalError(f"'{who[:80]}' is no member of pool '{pool}': its members are {names}")
        return found

    def _proposer(self, chain: ChainId, who: str) -> PeerId:
        """Return the author of an open change that `who` means; '' means the only one there is."""
        known = self._chain(chain)
        names = self._names(known)
        changes = known.state.open_changes()
        pool = known.genesis.invitation.name
        if not changes:
            raise LocalError(f"no change is open in pool '{pool}': there is nothing to approve")
        if not who:
            fresh = [authors[0] for _, authors in changes if self._peer.id not in authors]
            if len(fresh) == 1:
                return fresh[0]
            if not fresh:
                raise LocalError(f"this peer has approved all that is open in pool '{pool}'")
        authors = [(author, names.get(author, "")) for _, those in changes for author in those]
        found = meant(who, dict.fromkeys(authors)) if who else None
        if found is None:
            known_as = ", ".join(dict.fromkeys(name or short(peer) for peer, name in authors))
            fault = f"'{who[:80]}' has proposed nothing" if who else "several changes are open"
            raise LocalError(f"{fault} in pool '{pool}': name one of {known_as}")
        return found

    async def _newcomer(self, admit: Member | PeerId | str, address: str) -> Member:
        """Return who is to come, as it calls itself; it is linked, or known from another pool."""
        if isinstance(admit, Member):
            return admit
        linked = [(one.peer, one.name) for one in self._peer.connected()]
        found = meant(admit, [*linked, (self._peer.id, self._peer.name)])
        if found is None and address:
            return await self._reach(admit, address)
        if found is None:
            try:
                public_key_of(PeerId(admit))
            except DecodeError:
                raise LocalError(
                    f"no peer with the name '{admit[:80]}' is linked to {self._peer.name}: start it, or give "
                    "its peer id and its address"
                ) from None
            found = PeerId(admit)
        if not self._linked(found) and self.member(found) is None:
            raise LocalError(f"peer {admit} is not linked to {self._peer.name}: give its address, too")
        return await self._introduced(found)

    async def _reach(self, who: str, address: str) -> Member:
        """Link to the peer with the id `who` at `address`, and return it; Unavailable after 10 s."""
        try:
            named = split_address(address).peer
            peer = PeerId(who)
            public_key_of(peer)
        except DecodeError as error:
            raise LocalError(f"whom to admit: {error}") from None
        if named not in (None, peer):
            raise LocalError(f"the address is that of {named}, not of {peer}")
        self._transport.want(Member(peer, short(peer), "", (with_peer(address, peer),)))
        try:
            return await self._introduced(peer, f" at {address}")
        except Unavailable:
            if not self._peer.node.partners.needs(peer):
                self._transport.unwant(peer)
            raise

    async def _introduced(self, peer: PeerId, place: str = "") -> Member:
        """Return a peer as a member once it has said where it listens; Unavailable after 10 s."""
        deadline = asyncio.get_running_loop().time() + REACH_S
        while True:
            member = self.member(peer)
            if member is not None and (not place or self._linked(peer)):
                return member
            if asyncio.get_running_loop().time() >= deadline:
                raise Unavailable(f"peer {peer} was not reached{place} within {REACH_S:g} s")
            await asyncio.sleep(_POLL_S)

    def _linked(self, peer: PeerId) -> bool:
        return peer == self._peer.id or any(one.peer == peer for one in self._peer.connected())

    # --- changes --------------------------------------------------------------------------------

    async def _say(
        self, command: ChangeMembers, wish: _Wish, events: AsyncIterator[PeerEvent], timeout_ms: int
    ) -> object:
        """Put this peer's word on the chain, under the next number if another change is decided before it."""
        while True:
            number = self._chain(command.chain).state.change_number
            try:
                return await self._peer.command(command, timeout_ms)
            except Refused:
                if self._chain(command.chain).state.change_number == number:
                    raise
                if self._come_true(command.chain, wish):
                    return await self._said_by_others(command.chain, wish, events)

    async def _said_by_others(
        self, chain: ChainId, wish: _Wish, events: AsyncIterator[PeerEvent]
    ) -> RecordRef:
        """Return where a record stands that has brought about what this peer wishes, too."""
        async for event in events:
            if not isinstance(event, RecordCommitted) or event.ref.chain != chain:
                continue
            body = event.record.record.body
            if isinstance(body, MembershipChange) and _wish_of(body) == wish:
                return event.ref
        raise LocalError(f"peer {self._peer.name} is closed")

    def _come_true(self, chain: ChainId, wish: _Wish) -> bool:
        voting = [member.peer for member in self._chain(chain).state.next_roster]
        return wish.outgoing not in voting and (not wish.incoming or wish.incoming in voting)

    def _open(
        self,
        known: Chain,
        change: MembershipChange,
        authors: Sequence[PeerId],
        names: dict[PeerId, str],
    ) -> OpenChange:
        members = known.state.members
        return OpenChange(
            **_facts(change, names),
            proposer=authors[0],
            proposer_name=names.get(authors[0], ""),
            approved_by=[names.get(author, author) for author in authors if author in members],
            needed=quorum(len(members)),
            of=len(members),
            approved=self._peer.id in authors,
        )


def _wish_of(change: MembershipChange) -> _Wish:
    return _Wish(change.outgoing, change.incoming.peer if change.incoming is not None else "")


def meant(who: str, people: Iterable[tuple[PeerId, str]]) -> PeerId | None:
    """Return whom `who`, a name or a peer id, means; LocalError if several have that name."""
    found = list(dict.fromkeys(peer for peer, name in people if who in (peer, name)))
    if len(found) > 1:
        raise LocalError(f"{len(found)} peers are called '{who[:80]}': write the peer id of one of them")
    return found[0] if found else None


def _decided(change: MembershipChange | None, height: int, names: dict[PeerId, str]) -> DecidedChange | None:
    return None if change is None else DecidedChange(**_facts(change, names), in_force_height=height + 2)


def _facts(change: MembershipChange, names: dict[PeerId, str]) -> dict[str, Any]:
    incoming = change.incoming
    return {
        "number": change.number,
        "outgoing": change.outgoing,
        "outgoing_name": names.get(change.outgoing, ""),
        "incoming": incoming.peer if incoming is not None else "",
        "incoming_name": incoming.name if incoming is not None else "",
        "reason": change.reason,
    }

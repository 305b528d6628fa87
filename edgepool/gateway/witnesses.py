"""Witnesses: members without a machine, with whom small pools bear a liar [S3.6].

A pool of fewer than four members stops or is led astray by a single one that lies (f = 0). So its
coordinator tops it up with peers of the role 'witness', up to four. It is all or nothing: two members
and one witness would bear no liar either, and all three would be needed for every block.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepool.core.people import has_ended
from edgepool.errors import EdgepoolError
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis, Member

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

LEAST_MEMBERS = 4
"""The smallest pool that bears a liar: more than three times as many members as liars."""

LOOK_EVERY_S = 1.0
TRIES = 5
FIRST_PAUSE_S = 2.0
PROPOSE_TIMEOUT_MS = 15_000
REASON = "witness for a pool of fewer than four members"

_log = logging.getLogger(__name__)


def linked_witnesses(peer: Peer) -> tuple[Member, ...]:
    """Return the peers of role 'witness' that are linked to `peer`, by peer id."""
    ids = sorted(identity.peer for identity in peer.connected() if identity.role == "witness")
    members = (peer.member(one) for one in ids)
    return tuple(member for member in members if member is not None)


def pools_witnessed(peer: Peer) -> dict[PeerId, int]:
    """Return in how many pools that `peer` keeps each peer has a vote."""
    counts: dict[PeerId, int] = {}
    for chain in peer.chains:
        for member in peer.chain_state(chain).next_roster:
            counts[member.peer] = counts.get(member.peer, 0) + 1
    return counts


def choose_witnesses(
    members: Sequence[Member], witnesses: Sequence[Member], used: Mapping[PeerId, int]
) -> tuple[Member, ...]:
    """Return the witnesses that make `members` four: least `used` first, then by peer id.

    None if there are four already, or if `witnesses` are too few to make them four.
    """
    inside = {member.peer for member in members}
    spare = [witness for witness in witnesses if witness.peer not in inside]
    spare.sort(key=lambda witness: (used.get(witness.peer, 0), witness.peer))
    missing = LEAST_MEMBERS - len(members)
    return tuple(spare[:missing]) if 0 < missing <= len(spare) else ()


def witnesses_for(peer: Peer, members: Sequence[Member]) -> tuple[Member, ...]:
    """Return the witnesses linked to `peer` with whom a pool of `members` is to be formed."""
    return choose_witnesses(members, linked_witnesses(peer), pools_witnessed(peer))


async def keep_witnesses(peer: Peer, report: Callable[[str], None] | None = None) -> None:
    """Admit linked witnesses to pools of this coordinator that have fewer than four members; never ends.

    They may have become so few, or their witnesses may have come late. After five tries in vain a pool
    is left alone until its members change or another witness is linked. `report` is given a sentence
    for each pool that is topped up or that cannot be (by default they are logged).
    """
    say = report or _log.info
    desks: dict[ChainId, _Desk] = {}
    while True:
        for genesis in peer.pools:
            if peer.chain_state(genesis.chain).coordinator == peer.id:
                desks.setdefault(genesis.chain, _Desk(genesis, say))
        now_s = asyncio.get_running_loop().time()
        await asyncio.gather(*(desk.look(peer, now_s) for desk in desks.values()))
        await asyncio.sleep(LOOK_EVERY_S)


@dataclass(slots=True)
class _Desk:
    """One pool, and what was tried for it."""

    genesis: Genesis
    say: Callable[[str], None]
    situation: tuple[object, ...] = ()
    tries: int = 0
    again_s: float = 0.0
    told: bool = False

    async def look(self, peer: Peer, now_s: float) -> None:
        """Propose one witness if the pool needs one and there are enough."""
        state = peer.chain_state(self.genesis.chain)
        if len(state.next_roster) >= LEAST_MEMBERS or has_ended(state):
            return
        linked = linked_witnesses(peer)
        situation = (state.change_number, *(witness.peer for witness in linked))
        if situation != self.situation:
            self.situation, self.tries, self.again_s, self.told = situation, 0, 0.0, False
        if self.tries >= TRIES or now_s < self.again_s:
            return
        if any(
            peer.id in authors and change.incoming is not None and change.reason == REASON
            for change, authors in state.open_changes()
        ):
            return  # it is for the members now
        # Who was in the pool, or is about to leave it, was sent away or went by itself.
        gone = (*state.former, *state.members)
        willing = [witness for witness in linked if witness.peer not in gone]
        chosen = choose_witnesses(state.next_roster, willing, pools_witnessed(peer))
        name, count = self.genesis.invitation.name, len(state.next_roster)
        few = f"pool '{name}' has {count} {'member' if count == 1 else 'members'} and bears no liar"
        if not chosen:
            if state.change_number > 1 and not self.told:
                self.told = True
                more = LEAST_MEMBERS - count
                witnesses = f"{more} more witnesses" if more > 1 else "one more witness"
                self.say(f"{few}; {witnesses} must be linked to mend that")
            return
        self.tries += 1
        self.again_s = now_s + FIRST_PAUSE_S * 2 ** (self.tries - 1)
        witness = chosen[0]
        try:
            await peer.change_members(
                self.genesis.chain, admit=witness, reason=REASON, timeout_ms=PROPOSE_TIMEOUT_MS
            )
        except EdgepoolError as error:
            if self.tries == TRIES:
                self.say(f"{few}; {witness.name} cannot be admitted: {error}")
        else:
            self.say(f"{few}: {witness.name} is proposed as a witness")

"""Forms the fixed pools of a coordinator's settings as soon as their members are connected [S3.4]."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgepool.config import FixedPool
from edgepool.errors import Refused, Unavailable
from edgepool.gateway.witnesses import LEAST_MEMBERS, witnesses_for
from edgepool.model.pool import Genesis, Member
from edgepool.model.vote import quorum

if TYPE_CHECKING:
    from edgepool.peer.peer import Peer

POLL_S = 0.02
RETRY_S = 0.2
MAX_RETRY_S = 5.0

_log = logging.getLogger(__name__)


async def form_fixed_pools(peer: Peer, report: Callable[[str], None] | None = None) -> tuple[Genesis, ...]:
    """Form each fixed pool that does not stand yet; return all of them once they stand.

    A pool of fewer than four members gets witnesses that are linked by then (witnesses.py).
    Waits without end for members that are away, trying again with growing pauses. `report` is
    given a sentence for each pool that stands or is held up (by default they are logged).
    """
    say = report or _log.info
    formed = await asyncio.gather(*(_form(peer, pool, say) for pool in peer.settings.fixed_pools))
    return tuple(formed)


async def gather_members(peer: Peer, names: Sequence[str], timeout_s: float) -> list[Member]:
    """Return the peers with these names as members, as soon as all are connected to `peer`.

    Raises Unavailable naming those that are still missing after `timeout_s`.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        found, missing = find_members(peer, names)
        if not missing:
            return found
        if asyncio.get_running_loop().time() >= deadline:
            raise Unavailable(f"not connected after {timeout_s:g} s: {', '.join(missing)}")
        await asyncio.sleep(POLL_S)


async def pool_stands(genesis: Genesis, members: Sequence[Peer], timeout_s: float) -> None:
    """Wait until `members`, which run in this process, are in the pool and linked to a quorum of it.

    Raises Unavailable if that takes longer than `timeout_s`.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not all(_is_in(genesis, peer) for peer in members):
        if asyncio.get_running_loop().time() >= deadline:
            name = genesis.invitation.name
            raise Unavailable(f"pool '{name}' does not stand after {timeout_s:g} s: see 'edgepool status'")
        await asyncio.sleep(POLL_S)


def find_members(peer: Peer, names: Sequence[str]) -> tuple[list[Member], list[str]]:
    """Return those of `names` that are connected (or are `peer` itself), and who is missing."""
    connected = {identity.name: identity.peer for identity in peer.connected()}
    connected[peer.name] = peer.id
    found: list[Member] = []
    missing: list[str] = []
    for name in names:
        member = peer.member(connected[name]) if name in connected else None
        if member is None:
            missing.append(name)
        else:
            found.append(member)
    return found, missing


def with_coordinator(members: list[Member], coordinator: Member) -> tuple[list[Member], list[Member]]:
    """Return voters and observers of a fixed pool that the coordinator keeps too [S3.7].

    The coordinator votes where the others can still agree without it (from three members on), so
    that no pool comes to depend on it [S3.18]; elsewhere it observes.
    """
    if any(member.peer == coordinator.peer for member in members):
        return members, []
    if quorum(len(members) + 1) <= len(members):
        return [*members, coordinator], []
    return members, [coordinator]


async def _form(peer: Peer, pool: FixedPool, say: Callable[[str], None]) -> Genesis:
    pause_s, last = RETRY_S, ""
    while True:
        standing = _standing(peer, pool)
        if standing is not None:
            return standing
        members, missing = find_members(peer, pool.members)
        problem = f"pool '{pool.name}' waits for {', '.join(missing)}" if missing else ""
        if not missing:
            voters, observers = _plan(peer, members)
            try:
                genesis = await peer.form_pool(pool.name, "fixed", voters, observers=observers)
            except (Refused, Unavailable) as error:
                problem = f"pool '{pool.name}' cannot be formed yet: {error}"
                pause_s = min(pause_s * 2, MAX_RETRY_S)
            else:
                say(_told(pool, genesis))
                return genesis
        if problem != last:
            say(problem)
            last = problem
        await asyncio.sleep(pause_s)


def _plan(peer: Peer, members: list[Member]) -> tuple[list[Member], list[Member]]:
    """Return voters and observers of a fixed pool of `members`.

    Witnesses come before the coordinator: unlike its vote, theirs leaves the pool as free of it as it was.
    """
    (coordinator,), _ = find_members(peer, [peer.name])
    witnesses = witnesses_for(peer, members)
    if not witnesses:
        return with_coordinator(members, coordinator)
    voters = [*members, *witnesses]
    return voters, [] if coordinator in voters else [coordinator]


def _told(pool: FixedPool, genesis: Genesis) -> str:
    count = len(genesis.members)
    others = [one.name for one in genesis.invitation.members if one.name not in pool.members]
    added = f", {' and '.join(others)} among them" if others else ""
    stands = f"pool '{pool.name}' stands with {count} {'member' if count == 1 else 'members'}{added}"
    if count >= LEAST_MEMBERS:
        return stands
    return f"{stands}: it bears no liar, and there are not enough witnesses linked to make it four"


def _is_in(genesis: Genesis, peer: Peer) -> bool:
    linked = {identity.peer for identity in peer.connected()} | {peer.id}
    needed = quorum(len(genesis.members))
    return genesis.chain in peer.chains and len(linked & set(genesis.members)) >= needed


def _standing(peer: Peer, pool: FixedPool) -> Genesis | None:
    """Return the pool of this name if it stands with these members."""
    for genesis in peer.pools:
        invitation = genesis.invitation
        names = {member.name for member in invitation.people()}
        if invitation.kind == "fixed" and invitation.name == pool.name and names >= set(pool.members):
            return genesis
    return None

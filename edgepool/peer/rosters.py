"""Who votes on chains that lie in a folder, read from blocks and snapshots; nothing is checked or changed."""

from __future__ import annotations

from pathlib import Path

from edgepool.core.ledger.state import ChainState
from edgepool.core.replay import missed_turns
from edgepool.core.rosters import RosterFollower, RosterHistory
from edgepool.errors import DecodeError, StorageError
from edgepool.model.block import Header
from edgepool.model.pool import Genesis, members_hash
from edgepool.storage.reading import first_height
from edgepool.storage.snapshots import StoredSnapshot, read_snapshot
from edgepool.storage.store import read_chain


def follower_of(folder: Path, genesis: Genesis) -> RosterFollower:
    """Return a follower that can take the blocks of a chain stored in a peer's `folder` from the first on.

    StorageError if they need a snapshot and it is damaged.
    """
    stored = _needed_snapshot(folder, genesis)
    if stored is None:
        return RosterFollower(genesis)
    state = _restored(folder, genesis, stored)
    adopted = (state.adoption.incoming,) if state.adoption is not None else ()
    people = (state.next_roster, state.open_changes(), (*adopted, *state.observers))
    return RosterFollower(genesis, stored.height, stored.handovers, *people)


def rosters_for(folder: Path, genesis: Genesis, header: Header) -> RosterHistory:
    """Return the rosters of a stored chain up to the block of `header`, which is on it.

    Reads its blocks only if the roster has changed before that. StorageError if one is damaged.
    """
    if header.members_hash == members_hash(genesis.invitation.members):
        return RosterHistory(genesis)
    follower = follower_of(folder, genesis)
    for height, certified in read_chain(folder, genesis.chain)[1]:
        if height >= header.height:
            break
        if isinstance(certified, StorageError):
            raise certified
        follower.take(certified)
    return follower.history


def known_rosters(folder: Path, genesis: Genesis) -> RosterHistory:
    """Return the rosters of a stored chain as far as they are known without reading its blocks."""
    stored = read_snapshot(folder / "chains" / genesis.chain)
    return RosterHistory(genesis, stored.handovers if stored is not None else ())


def first_state(folder: Path, genesis: Genesis) -> ChainState:
    """Return the state on which the stored blocks that can be replayed stand: empty, or a snapshot's."""
    stored = _needed_snapshot(folder, genesis)
    return ChainState(genesis) if stored is None else _restored(folder, genesis, stored)


def replay(folder: Path, genesis: Genesis) -> tuple[ChainState, RosterHistory]:
    """Return the state that the blocks of a stored chain make, and its rosters.

    StorageError names the first block that is damaged or cannot stand; votes and signatures are not checked.
    """
    state = first_state(folder, genesis)
    follower = follower_of(folder, genesis)
    for height, certified in read_chain(folder, genesis.chain)[1]:
        if isinstance(certified, StorageError):
            raise certified
        follower.take(certified)
        if height <= state.height:
            continue
        block = certified.block
        problem = state.header_problem(block.header) or block.body_problem()
        draft = state.draft()
        for signed in block.records:
            problem = problem or draft.add(signed)
        if problem:
            raise StorageError(
                f"block {height} of chain '{genesis.invitation.name}' cannot stand ({problem}): "
                f"'edgepool chain verify {folder}' checks all of it"
            )
        state.apply(block, missed_turns(state, block.header))
    return state, follower.history


def _needed_snapshot(folder: Path, genesis: Genesis) -> StoredSnapshot | None:
    """Return the snapshot without which the stored blocks say nothing; None if they begin at 1."""
    path = folder / "chains" / genesis.chain
    return read_snapshot(path) if first_height(path) > 1 else None


def _restored(folder: Path, genesis: Genesis, stored: StoredSnapshot) -> ChainState:
    try:
        return ChainState.restore(genesis, stored.state)
    except DecodeError as error:
        raise StorageError(
            f"{folder}: the snapshot of chain {genesis.chain} at {stored.height} is damaged ({error})"
        ) from None

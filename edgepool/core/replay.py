"""How a chain's state comes of what is stored: its snapshot, if there is one, and the blocks after it.

The store is this peer's own, so blocks are not judged again; but a snapshot must make the state root that the
block after it names, else all that follows would be refused without anybody knowing why.
"""

from __future__ import annotations

from edgepool.core.consensus.lottery import leader_order, lottery_seed, weights
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import BlockSource, SavedSnapshot
from edgepool.errors import DecodeError, StorageError
from edgepool.model.block import CertifiedBlock, Handover, Header
from edgepool.model.ids import PeerId
from edgepool.model.pool import Genesis


def load_state(genesis: Genesis, source: BlockSource, height: int) -> tuple[ChainState, list[Handover]]:
    """Return a chain's state after its stored block at `height` (0: none yet), and the handovers up to it.

    StorageError names what is missing or damaged.
    """
    chain = genesis.chain
    saved = source.snapshot(chain)
    state = ChainState(genesis) if saved is None else _restored(genesis, source, saved, height)
    handovers = [] if saved is None else list(saved.handovers)
    while state.height < height:
        certified = source.block(chain, state.height + 1)
        if certified is None:
            raise StorageError(f"chain {chain} lacks block {state.height + 1}: it is missing in the store")
        handover = handover_of(state, certified)
        if handover is not None:
            handovers.append(handover)
        if state.height + 1 == height:
            assert state.root  # asked for, so that the last header can be explained
        state.apply(certified.block, missed_turns(state, certified.block.header))
    return state, handovers


def handover_of(state: ChainState, certified: CertifiedBlock) -> Handover | None:
    """Return the handover that the block after `state` makes, if its header names another roster as next."""
    change = state.pending_change
    if change is None:
        return None
    return Handover(certified.block.header, certified.certificate, change.outgoing, change.incoming)


def next_leaders(state: ChainState) -> tuple[PeerId, ...]:
    """Return who may propose at the height after that of `state`: round r is led by [r % n]."""
    seed = lottery_seed(state.network, state.chain, state.height + 1, state.beacon)
    return leader_order(seed, weights(state.work(), state.members, state.missed()))


def missed_turns(state: ChainState, header: Header) -> tuple[PeerId, ...]:
    """Return who led the rounds before that of `header`, the header of the block after `state`."""
    return next_leaders(state)[: header.round] if header.round else ()


def _restored(genesis: Genesis, source: BlockSource, saved: SavedSnapshot, height: int) -> ChainState:
    """Return the state of a stored snapshot, which knows again the records that are still in its window."""
    name = f"the stored snapshot of chain {genesis.chain} at height {saved.height}"
    if saved.height > height:
        raise StorageError(
            f"{name} is above the last stored block, {height}: blocks are missing in the store"
        )
    try:
        state = ChainState.restore(genesis, saved.state)
    except DecodeError as error:
        raise StorageError(f"{name} cannot be read: {error}") from None
    if state.height != saved.height:
        raise StorageError(f"{name} holds the state of height {state.height}")
    after = source.block(genesis.chain, saved.height + 1)
    problem = state.header_problem(after.block.header) if after is not None else ""
    if problem:
        raise StorageError(f"{name} does not fit the blocks after it: {problem}")
    for past in range(state.height, state.horizon, -1):
        ids = source.record_ids(genesis.chain, past)
        if ids is None:  # the snapshot came from another peer
            break
        state.recall_ids(past, ids)
    return state

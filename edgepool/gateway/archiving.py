"""Puts the chain of a pool that a gateway has left away: it is not loaded and kept up any more [S3.7].

The folder `archive` beside `chains` holds such chains as they are: `edgepool chain verify` and its likes read
them there. Nothing of a chain is deleted. What others, or this gateway itself, still need it for is named,
and then it stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edgepool.config import PeerSettings, load_peer_settings
from edgepool.core.ledger.state import ChainState
from edgepool.core.people import has_ended
from edgepool.core.replay import load_state
from edgepool.errors import LocalError
from edgepool.gateway.views import choose_chain
from edgepool.model.ids import ChainId, PeerId, peer_id_from_public_key
from edgepool.runtime.ports import SavedChain
from edgepool.storage.blobs import BlobStore
from edgepool.storage.files import guarded, make_folder, sync_folder
from edgepool.storage.store import FolderStore, archive_of
from edgepool.transport.identity import read_certificate

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Archived:
    """What was put away: the chain, its pool's name, how high it is, and the folder that has it now."""

    chain: ChainId
    pool: str
    height: int
    folder: Path


def archive_chain(folder: Path, wanted: str) -> Archived:
    """Put the chain that `wanted` names away; the peer of `folder` must not run.

    LocalError says what it is needed for, or what else is in the way, and nothing has changed.
    """
    settings = load_peer_settings(folder)
    store = FolderStore(folder)
    chains = store.open()
    try:
        genesis = choose_chain(wanted, [one.genesis for one in chains])
        saved = next(one for one in chains if one.genesis.chain == genesis.chain)
        state, _ = load_state(genesis, store, saved.height)
        problem = _part_in(state, settings) or _data_on(state, settings, store, chains)
        if problem:
            raise LocalError(problem)
        _move(folder, genesis.chain)
    finally:
        store.close()
    return Archived(genesis.chain, genesis.invitation.name, saved.height, archive_of(folder))


def _part_in(state: ChainState, settings: PeerSettings) -> str:
    """Say which part the peer still has in the pool, and what to do, or return ''."""
    me, invitation = _own_id(settings), state.genesis.invitation
    pool = f"pool {invitation.name}"
    if has_ended(state):
        return ""
    if me in [one.peer for one in (*state.roster, *state.next_roster)]:
        leave = f"edgepool member exclude {settings.folder} '{invitation.name}' '{settings.name}'"
        return f"{settings.name} votes in {pool}, which counts on it: leave the pool first, with '{leave}'"
    if me in [one.peer for one in state.newcomers()]:
        return f"the members of {pool} have not decided yet whether {settings.name} comes in"
    if me == state.coordinator or me in [one.peer for one in state.observers]:
        return f"{settings.name} has formed {pool}, or observes it, for as long as it stands"
    return ""


def _data_on(state: ChainState, settings: PeerSettings, store: FolderStore, chains: list[SavedChain]) -> str:
    """Say which data is held here that only this chain knows of, or return ''.

    Its owner's policy would be forgotten with it, and the data handed out as if there were none.
    """
    held = frozenset(BlobStore(settings.folder / "blobs", settings.limits.data_bytes).roots())
    here = {offer.root: str(offer.key) for offer, _ in state.standing_offers() if offer.root in held}
    for other in chains if here else ():
        if other.genesis.chain != state.chain:
            known, _ = load_state(other.genesis, store, other.height)
            for offer, _ in known.standing_offers():
                here.pop(offer.root, None)
    if not here:
        return ""
    keys = sorted(set(here.values()))
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return (
        f"data {', '.join(keys[:_SHOWN])}{more} is held here, and offered on this chain alone: its owner's "
        "policy would be forgotten; drop the data with 'edgepool data evict' while the peer runs, or publish "
        "it on another chain"
    )


def _move(folder: Path, chain: ChainId) -> None:
    source, target = folder / "chains" / chain, archive_of(folder) / "chains" / chain
    if target.exists():
        raise LocalError(f"{target} is there already, from an earlier time: move it to another place first")
    make_folder(target.parent)
    with guarded(target, "written"):
        source.rename(target)
        sync_folder(target.parent)
        sync_folder(source.parent)


def _own_id(settings: PeerSettings) -> PeerId:
    """Return the peer's id by its certificate: no passphrase is needed for that."""
    public = read_certificate(settings.path(settings.identity.certificate)).public_key()
    assert isinstance(public, Ed25519PublicKey)
    return peer_id_from_public_key(public.public_bytes_raw())

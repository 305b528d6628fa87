"""What a member has from a key that it had before, as far as a new signature of its own is wanted for it."""

from __future__ import annotations

from edgepool.core.ledger.facts import OfferEntry
from edgepool.core.ledger.state import ChainState
from edgepool.core.machine import RecordRef
from edgepool.model.ids import PeerId
from edgepool.model.record import DataOffer
from edgepool.model.twin import DataKey


def has_own(state: ChainState, entry: OfferEntry) -> bool:
    """Say whether an offer bears the signature of its holder's present key, not of an earlier one.

    One of an earlier key proves that key, which nobody answers to any more.
    """
    return not any(one.heir == entry.holder and entry.ref.height <= one.last for one in state.successions)


def inherited_offers(state: ChainState, holder: PeerId) -> list[DataOffer]:
    """Return what earlier keys of `holder` have offered and its present one has not, the oldest first.

    Each version once, whichever of those keys have offered it.
    """
    found: dict[tuple[DataKey, int], DataOffer] = {}
    for height, index, offer in state.offers_by(holder):
        if has_own(state, OfferEntry(RecordRef(state.chain, height, index), offer, holder)):
            continue
        others = (one for one in state.offers(offer.key, offer.version) if one.holder == holder)
        if not any(has_own(state, one) for one in others):
            found.setdefault((offer.key, offer.version), offer)
    return list(found.values())


def known_heir(state: ChainState, peer: PeerId) -> PeerId:
    """Return the key that whoever had the key `peer` has by now, '' if that is still its own."""
    heir = state.heir(peer)
    return heir if heir != peer else PeerId("")


def newest_key(state: ChainState, peer: PeerId) -> PeerId:
    """Return the key that whoever had the key `peer` has, or will have by what is decided."""
    peer, change = state.heir(peer), state.pending_change
    return change.heir if change is not None and change.heir and change.outgoing == peer else peer


def heirs_to_come(state: ChainState) -> list[PeerId]:
    """Return the new keys of members that have no vote yet: of successions that are open, or just decided."""
    changes = [state.pending_change, *(change for change, _ in state.open_changes())]
    return [change.heir for change in changes if change is not None and change.heir]

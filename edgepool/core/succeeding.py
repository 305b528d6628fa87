"""Which step comes next for a peer that goes on under another key, on its chains [S3.6].

Pure, for whoever takes the steps: a running peer (peer/rotation.py) and the simulator. See the decision
record 0016.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgepool.core.chain import Chain
from edgepool.core.people import has_ended
from edgepool.model.ids import PeerId
from edgepool.model.succession import KeySuccession
from edgepool.model.trust import RevokePeer


def places(chains: Iterable[Chain], me: PeerId) -> list[Chain]:
    """Return the chains that name the key `me`, in an order that all peers have.

    There it votes, now or soon, observes, or is the coordinator. Of a pool that has
    ended only the last member is: it may have put the chain away, and nobody else writes on it.
    """
    named = [chain for chain in chains if chain.state.names(me)]
    going_on = [one for one in named if one.state.may_write(me) or not has_ended(one.state)]
    return sorted(going_on, key=lambda chain: chain.id)


def place_to_pass_on(waiting: Iterable[Chain], me: PeerId) -> Chain | None:
    """Return on which of its `places` the key `me` is to say now that another follows it, if on any.

    A pool that has decided so waits for the new key, and that one comes when the last pool has. So each peer
    passes on one place after the other, in the same order: else two peers who change their keys at the same
    time would each be waited for where the other needs a decision. Where it has no vote nobody waits.
    """
    for chain in waiting:
        if not chain.state.may_write(me):
            return None if _is_saying(chain) else chain
        if any(one.peer == me for one in chain.state.next_roster):
            return None if _has_said(chain, me) else chain
    return None


def lacks_revocation(chain: Chain, me: PeerId, former: RevokePeer) -> bool:
    """Say whether `me` is still to say on `chain`, a main chain, that its key `former` is revoked."""
    trust = chain.state.trust
    said = [change.step for change, authors in trust.open if me in authors]
    return not trust.is_revoked(former.peer) and former not in said


def _has_said(chain: Chain, me: PeerId) -> bool:
    """Say whether the word of `me` stands, or is on its way, under the present number."""
    number = chain.state.change_number
    said = [change for change, authors in chain.state.open_changes() if me in authors]
    return any(change.heir and change.outgoing == me for change in said) or any(
        getattr(body, "heir", "") and getattr(body, "number", 0) == number for body in chain.own_waiting
    )


def _is_saying(chain: Chain) -> bool:
    """Say whether the word of this peer, which has no vote, is on its way."""
    return any(isinstance(body, KeySuccession) for body in chain.own_waiting)

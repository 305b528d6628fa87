"""Who proposes: the proof-of-manufacturing lottery (Liu et al.), in a form that nobody can grind.

The paper's ticket is SHA256(SHA256(header + body), node, nonce) against f(share of work). Here
'header + body' is (network, chain, height, beacon): the beacon is fixed by earlier blocks, so no
choice of a body changes the draw. f is linear and scaled to the largest weight, the nonce is a
counter, and P(leader = c) = weight(c) / sum of weights, exactly. Integers only, no state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from edgepool.model.codec import encode
from edgepool.model.crypto import sha256
from edgepool.model.ids import ChainId, PeerId

_TICKETS = 2**256


def leader_order(seed: bytes, weights: Mapping[PeerId, int]) -> tuple[PeerId, ...]:
    """Return all peers of `weights` in the order in which they lead: round r is led by [r % n].

    Drawn without replacement, each draw in proportion to the weights that are left, so that an
    honest leader comes within f + 1 rounds. Weights are positive; ValueError otherwise.
    """
    return tuple(leaders(seed, weights))


def leaders(seed: bytes, weights: Mapping[PeerId, int]) -> Iterator[PeerId]:
    """Draw the leaders one by one, in the order of `leader_order`."""
    if any(weight <= 0 for weight in weights.values()):
        raise ValueError("every weight in the lottery must be positive")
    rest = sorted(weights)
    nonce = 0
    while len(rest) > 1:
        largest = max(weights[peer] for peer in rest)
        while True:
            candidate = rest[_number(seed, "candidate", nonce) % len(rest)]
            ticket = _number(seed, candidate, nonce)
            nonce += 1
            if ticket * largest < weights[candidate] * _TICKETS:
                break
        yield candidate
        rest.remove(candidate)
    yield from rest


def lottery_seed(network: str, chain: ChainId, height: int, beacon: bytes) -> bytes:
    """Return the 32-byte seed of a height's draw; `beacon` is the chain's after the block before."""
    return sha256(encode(["edgepool/1/lottery", network, chain, height, beacon]))


def weights(
    work: Mapping[PeerId, int], members: Sequence[PeerId], missed: Collection[PeerId] = ()
) -> dict[PeerId, int]:
    """Return each member's weight: 0.9 * (share of credited work, at most 1/3) + 0.1 / n.

    Scaled to integers by 30 * n * (all members' work), without rounding; all 2 when nobody has
    worked. Who has `missed` a turn has half of it, rounded down, but never less than without work:
    it may be honest and have been cut off. Work that was taken back below zero counts as none, work of
    others not at all.
    """
    credited = {peer: max(0, work.get(peer, 0)) for peer in members}
    total = sum(credited.values())
    if total == 0:
        return {peer: 1 if peer in missed else 2 for peer in members}
    count, floor = len(members), 3 * total
    weight = {peer: 9 * count * min(3 * done, total) + floor for peer, done in credited.items()}
    return {peer: max(floor, own // 2) if peer in missed else own for peer, own in weight.items()}


def _number(seed: bytes, who: str, nonce: int) -> int:
    return int.from_bytes(sha256(encode([seed, who, nonce])), "big")

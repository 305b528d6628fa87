"""The lottery draws leaders exactly in proportion to countersigned work, and nothing else moves it."""

from __future__ import annotations

from collections import Counter

import pytest

from edgepool.core.consensus.lottery import leader_order, leaders, lottery_seed, weights
from edgepool.model.ids import ChainId, PeerId

CHAIN = ChainId("cd" * 20)


def members(count: int) -> list[PeerId]:
    return [PeerId(f"12D3KooWmember{place:02}") for place in range(count)]


def seed(height: int) -> bytes:
    return lottery_seed("plant", CHAIN, height, b"beacon")


# Critical values of chi-square at a probability of 0.001, by degrees of freedom.
CRITICAL = {3: 16.27, 6: 22.46, 9: 27.88}


@pytest.mark.parametrize(
    "drawn",
    [
        dict.fromkeys(members(4), 1),
        dict(zip(members(10), range(1, 11), strict=True)),
        dict(zip(members(4), (70, 10, 10, 10), strict=True)),
        weights({members(7)[0]: 500, members(7)[1]: 20}, members(7)),
    ],
    ids=["equal", "skewed", "one dominates", "weights of work"],
)
def test_leaders_come_in_proportion_to_their_weights(drawn: dict[PeerId, int]) -> None:
    draws = 20_000
    led = Counter(leader_order(seed(height), drawn)[0] for height in range(draws))
    total = sum(drawn.values())
    expected = {peer: draws * weight / total for peer, weight in drawn.items()}
    chi_square = sum((led[peer] - expected[peer]) ** 2 / expected[peer] for peer in drawn)
    assert chi_square < CRITICAL[len(drawn) - 1]


def test_the_second_leader_is_drawn_from_those_who_are_left() -> None:
    drawn = dict(zip(members(4), (4, 3, 2, 1), strict=True))
    first = members(4)[0]
    orders = [leader_order(seed(height), drawn) for height in range(3_000)]
    second = Counter(order[1] for order in orders if order[0] == first)
    draws = second.total()
    chi_square = sum(
        (second[peer] - draws * drawn[peer] / 6) ** 2 / (draws * drawn[peer] / 6) for peer in members(4)[1:]
    )
    assert first not in second
    assert chi_square < 13.82


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 30])
def test_everybody_leads_once(count: int) -> None:
    drawn = weights({peer: place**3 for place, peer in enumerate(members(count))}, members(count))
    for height in range(20):
        assert sorted(leader_order(seed(height), drawn)) == members(count)


def test_the_order_of_the_members_does_not_matter() -> None:
    drawn = weights({members(5)[2]: 7}, members(5))
    assert leader_order(seed(1), drawn) == leader_order(seed(1), dict(reversed(drawn.items())))


def test_known_draw() -> None:
    """A change of the draw would fork a fleet of mixed versions."""
    drawn = dict(zip(members(5), (5, 4, 3, 2, 1), strict=True))
    assert [peer[-2:] for peer in leader_order(seed(1), drawn)] == ["00", "02", "04", "01", "03"]


def test_the_seed_depends_on_network_chain_height_and_beacon() -> None:
    seeds = {
        lottery_seed("plant", CHAIN, 1, b"x"),
        lottery_seed("other", CHAIN, 1, b"x"),
        lottery_seed("plant", ChainId("ef" * 20), 1, b"x"),
        lottery_seed("plant", CHAIN, 2, b"x"),
        lottery_seed("plant", CHAIN, 1, b"y"),
    }
    assert len(seeds) == 5


def test_weights_are_exact_without_a_cap() -> None:
    work = dict(zip(members(5), (1, 2, 3, 2, 1), strict=True))
    shares = weights(work, members(5))
    scale = 30 * 5 * 9
    assert sum(shares.values()) == scale
    for peer, done in work.items():
        assert shares[peer] * 5 * 9 * 10 == scale * (9 * done * 5 + 9)  # 0.9 * done / 9 + 0.1 / 5


def test_a_share_of_work_counts_up_to_a_third() -> None:
    peers = members(4)
    alone = weights({peers[0]: 1_000}, peers)
    third = weights({peers[0]: 100, peers[1]: 100, peers[2]: 100}, peers)
    assert alone[peers[0]] * 300 == third[peers[0]] * 1_000
    assert alone[peers[0]] == 13 * alone[peers[1]]  # 0.3 + 0.025 to 0.025


def test_who_has_not_worked_keeps_a_floor() -> None:
    peers = members(10)
    shares = weights({peers[0]: 3, peers[1]: 3, peers[2]: 3}, peers)
    assert {peer: 100 * share // sum(shares.values()) for peer, share in shares.items()} == {
        **dict.fromkeys(peers[:3], 31),
        **dict.fromkeys(peers[3:], 1),
    }


def test_all_are_equal_when_nobody_has_worked() -> None:
    assert len(set(weights({}, members(6)).values())) == 1


def test_work_of_others_and_work_taken_back_counts_for_nothing() -> None:
    peers = members(3)
    plain = weights({peers[0]: 4, peers[1]: 4}, peers)
    assert weights({peers[0]: 4, peers[1]: 4, peers[2]: -9, PeerId("stranger"): 50}, peers) == plain


def test_a_missed_turn_halves_the_weight_down_to_that_without_work() -> None:
    peers = members(4)
    work = {peers[0]: 60, peers[1]: 60, peers[2]: 3}
    plain, halved = weights(work, peers), weights(work, peers, peers)
    assert halved[peers[0]] == plain[peers[0]] // 2
    assert halved[peers[2]] == halved[peers[3]] == plain[peers[3]]  # the floor
    assert weights(work, peers, peers[1:2]) == {**plain, peers[1]: halved[peers[1]]}


def test_a_missed_turn_halves_the_weight_when_nobody_has_worked() -> None:
    peers = members(3)
    assert weights({}, peers, peers[:1]) == {peers[0]: 1, peers[1]: 2, peers[2]: 2}


def test_leaders_are_drawn_one_by_one_in_the_order() -> None:
    drawn = dict(zip(members(7), range(1, 8), strict=True))
    assert tuple(leaders(seed(3), drawn)) == leader_order(seed(3), drawn)


def test_a_weight_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        leader_order(seed(1), dict.fromkeys(members(2), 0))

"""Which key a conduit has by now: what who is found in its place has to show, and what liars get."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edgepool.model.crypto import Signer, sha256
from edgepool.model.lineage import Line, follow
from edgepool.transport import conduitkeys
from edgepool.transport.conduitkeys import ConduitKeys

NETWORK = "works"
OLD, NEW, NEXT, OTHER, ME = (Signer(sha256(name.encode())) for name in ("old", "new", "next", "other", "me"))
AT = "/ip4/10.0.0.1/tcp/4001"


def line_of(*keys: Signer, network: str = NETWORK) -> Line:
    return tuple(follow(one, later, network) for one, later in pairwise(keys))


def test_addresses_are_read_with_the_key_that_the_conduit_has_now() -> None:
    keys = ConduitKeys(NETWORK)
    behind = f"{AT}/p2p/{OLD.peer}/p2p-circuit/p2p/{ME.peer}"
    assert keys.of_address(behind) == behind
    assert keys.follow(OLD.peer, NEW.peer, line_of(OLD, NEW))
    assert keys.of_address(behind) == f"{AT}/p2p/{NEW.peer}/p2p-circuit/p2p/{ME.peer}"
    assert keys.of_address(f"{AT}/noise/p2p/{OLD.peer}") == f"{AT}/noise/p2p/{NEW.peer}"
    assert keys.of_address(AT) == AT
    assert keys.follow(OLD.peer, NEW.peer, ())  # of two that ask at once the second is told what is known
    # Once more, and for who knows the first key as for who knows the second.
    assert keys.follow(OLD.peer, NEXT.peer, line_of(OLD, NEW, NEXT))
    assert keys.now(OLD.peer) == keys.now(NEW.peer) == NEXT.peer


@pytest.mark.parametrize(
    "line",
    [
        (),
        line_of(OTHER, NEW),
        line_of(OLD, OTHER),
        line_of(OLD, NEW, network="elsewhere"),
        (*line_of(OLD, OTHER), *line_of(NEXT, NEW)),
    ],
    ids=["none", "of another", "to another", "of another network", "broken"],
)
def test_who_does_not_show_that_both_keys_have_signed_is_nobody(line: Line) -> None:
    keys = ConduitKeys(NETWORK)
    assert not keys.follow(OLD.peer, NEW.peer, line)
    assert keys.now(OLD.peer) == OLD.peer


def test_the_first_in_a_place_keeps_it_and_what_links_and_chains_say_counts_before() -> None:
    keys = ConduitKeys(NETWORK)
    assert keys.follow(OLD.peer, NEW.peer, line_of(OLD, NEW))
    assert not keys.follow(OLD.peer, OTHER.peer, line_of(OLD, OTHER))
    keys.heir = lambda peer: NEXT.peer if peer == OLD.peer else peer
    assert keys.now(OLD.peer) == NEXT.peer


def test_a_former_key_has_its_place_until_its_heir_was_there() -> None:
    keys = ConduitKeys(NETWORK)
    keys.heir = lambda peer: NEW.peer if peer == OLD.peer else peer
    assert keys.follow(NEW.peer, OLD.peer, ())
    assert not keys.follow(OTHER.peer, OLD.peer, ())
    keys.names[NEW.peer] = "conduit"
    assert not keys.follow(NEW.peer, OLD.peer, ())
    assert not keys.follow(OLD.peer, OLD.peer, ())


def test_keys_that_follow_each_other_in_a_circle_lead_nowhere_and_end() -> None:
    keys = ConduitKeys(NETWORK)
    assert keys.follow(OLD.peer, NEW.peer, line_of(OLD, NEW))
    keys.names[NEW.peer] = "conduit"
    assert not keys.follow(NEW.peer, OLD.peer, line_of(NEW, OLD))
    assert keys.now(NEW.peer) == NEW.peer
    keys.heir = lambda peer: OLD.peer if peer == NEW.peer else peer
    assert keys.now(OLD.peer) in (OLD.peer, NEW.peer)


def test_so_many_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduitkeys, "MAX_FOLLOWED", 2)
    keys, formers = ConduitKeys(NETWORK), [Signer(sha256(bytes([n]))) for n in range(3)]
    heirs = [Signer(sha256(bytes([n, n]))) for n in range(3)]
    for former, heir in zip(formers, heirs, strict=True):
        assert keys.follow(former.peer, heir.peer, line_of(former, heir))
    assert [keys.now(former.peer) for former in formers] == [formers[0].peer, heirs[1].peer, heirs[2].peer]

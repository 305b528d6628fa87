"""Which pools know a peer by its key, as it finds them beside that key when its chains are lost [S3.6]."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ledger_world import World
from test_succession import succeed

from edgepool.config import PeerSettings
from edgepool.core.ledger.state import ChainState
from edgepool.model.ids import ChainId, PeerId
from edgepool.peer.keypools import MAX_POOLS, KeyPools


class Desk:
    """A peer's key folder, and the chains that it knows at present."""

    def __init__(self, folder: Path, me: PeerId) -> None:
        settings = PeerSettings(name="m1", network="works", folder=folder)
        self.chains: dict[ChainId, Any] = {}
        self.peer: Any = SimpleNamespace(id=me, settings=settings, node=SimpleNamespace(chains=self.chains))
        self.pools = KeyPools(self.peer)
        self.pools.path.parent.mkdir(parents=True)

    def knows(self, world: World, state: ChainState | None = None) -> None:
        """Let it know the chain of `world`, perhaps in an earlier state."""
        chain = SimpleNamespace(id=world.genesis.chain, genesis=world.genesis, state=state or world.state)
        self.chains[chain.id] = chain

    def note(self) -> None:
        if lines := self.pools.lines():
            self.pools.write(lines)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def desk(world: World, tmp_path: Path) -> Desk:
    """Return the desk of member 1, on which its pool is noted."""
    desk = Desk(tmp_path / "m1", world.peers[1])
    desk.knows(world)
    desk.note()
    assert desk.pools.lines() == b"", "it is written once"
    return desk


def test_a_pool_whose_chain_is_gone_is_missed_until_it_is_here_again(world: World, desk: Desk) -> None:
    desk.chains.clear()
    assert desk.pools.missing() == {world.genesis.chain: "liner"}
    desk.note()
    assert desk.pools.missing() == {world.genesis.chain: "liner"}, "nor is it forgotten"
    desk.knows(world)
    assert desk.pools.missing() == {}


def test_who_was_in_no_pool_has_no_file(world: World, tmp_path: Path) -> None:
    desk = Desk(tmp_path / "fresh", world.outsider.peer)
    desk.note()
    assert not desk.pools.path.exists()
    desk.knows(world)
    desk.note()
    assert not desk.pools.path.exists(), "nor who follows what others do"
    assert desk.pools.missing() == {}


def test_a_chain_that_does_not_come_up_to_the_peers_own_place_is_still_missed(
    world: World, tmp_path: Path
) -> None:
    """It was admitted later, or has had another key at first: the first blocks do not name it."""
    begun = ChainState(world.genesis)
    new = succeed(world)
    desk = Desk(tmp_path / "m1", new.peer)
    desk.knows(world)
    desk.note()
    desk.knows(world, begun)
    assert desk.pools.missing() == {world.genesis.chain: "liner"}


def test_what_was_left_or_put_away_is_over(world: World, desk: Desk) -> None:
    folder = desk.peer.settings.folder / "archive" / "chains" / world.genesis.chain
    known = desk.chains.copy()
    desk.chains.clear()
    folder.mkdir(parents=True)
    assert desk.pools.missing() == {}
    folder.rmdir()
    desk.chains.update(known)
    world.decide(world.change(outgoing=world.signers[1]))
    world.pack(world.demand(0))
    desk.note()
    desk.chains.clear()
    assert desk.pools.missing() == {}


def test_a_pool_in_which_the_next_key_has_its_place_already_stays_noted(world: World, desk: Desk) -> None:
    """If the chains are lost just then, nothing changes the key before they are back."""
    succeed(world)
    desk.note()
    desk.chains.clear()
    assert desk.pools.missing() == {world.genesis.chain: "liner"}


def test_the_file_is_bounded_and_what_is_no_line_says_nothing(desk: Desk) -> None:
    desk.chains.clear()
    many = [f"{number:040x} p{number}" for number in range(MAX_POOLS)]
    desk.pools.path.write_bytes(b"\xff\n\n" + "\n".join([*many, "f" * 40, "x" * 10_000_000]).encode())
    assert len(desk.pools.missing()) == MAX_POOLS + 1
    desk.pools.path.write_text("no line\n0123 short\n" + "é" * 40 + " strange\n")
    assert desk.pools.missing() == {}

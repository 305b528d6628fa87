"""A few seconds of `make fuzz`, and that it finds what it is there to find."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz import Fuzzer, Job
from fuzz_cell import COORDINATOR, HONEST, LIAR, Cell
from fuzz_hostile import Hostile
from fuzz_mutation import Seed

import edgepool.model.codec
from edgepool.core.consensus.votes import VoteBook
from edgepool.core.node import Node
from edgepool.model.message import Query, decode_message
from edgepool.model.vote import Vote


def test_mutated_frames_and_hostile_messages_raise_nothing() -> None:
    outcome = Fuzzer(Job(seed=11, worker=0, executions=60_000, node_share=60)).run()
    assert outcome.errors == []
    assert outcome.executions == 60_000
    assert outcome.nodes > 500
    assert outcome.accepted > 5_000


def test_the_same_seed_makes_the_same_run() -> None:
    first, second = (Fuzzer(Job(12, 0, 400, 2)).run() for _ in range(2))
    other = Fuzzer(Job(13, 0, 400, 2)).run()
    assert first.trace == second.trace
    assert (first.accepted, first.nodes) == (second.accepted, second.nodes)
    assert other.trace != first.trace


def test_a_crash_in_a_decoder_is_reported_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzer = Fuzzer(Job(14, 0, 20_000, 1_000_000))
    real = edgepool.model.codec.encode(1)

    class Planted:
        def encode(self, value: Any) -> bytes:
            if isinstance(value, Query):
                raise KeyError("planted")
            return real

    monkeypatch.setattr(edgepool.model.codec, "_encoder", Planted())
    found = fuzzer.run().errors[0]
    assert "seed 14, process 0" in found
    assert "planted" in found
    frame = bytes.fromhex(found.rpartition("bytes: ")[2])
    with pytest.raises(KeyError):
        decode_message(frame)


def test_a_crash_in_a_handler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzer = Fuzzer(Job(15, 0, 2_000, 1))
    real = Node._receive

    def planted(self: Node, peer: Any, message: Any, now: Any) -> Any:
        if isinstance(message, Query) and len(message.visited) == 256:
            raise IndexError("planted")
        return real(self, peer, message, now)

    monkeypatch.setattr(Node, "_receive", planted)
    found = fuzzer.run().errors[0]
    assert "unhandled in a node" in found
    assert "planted" in found


def test_a_member_that_forgets_what_it_said_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzer = Fuzzer(Job(22, 0, 4_000, 1))
    monkeypatch.setattr(VoteBook, "said", lambda self, kind, round, voter: None)
    real = VoteBook.votes_of

    def forgetful(self: VoteBook, voter: Any) -> tuple[Vote, ...]:
        return real(self, voter)[:0]

    monkeypatch.setattr(VoteBook, "votes_of", forgetful)
    monkeypatch.setattr("edgepool.core.consensus.engine.Engine._recall", lambda self: False)
    assert "two values signed" in fuzzer.run().errors[0]


def test_every_hostile_message_reaches_a_node_and_the_pool_lives_on() -> None:
    fuzzer = Fuzzer(Job(17, 0, 1, 1))
    cell = Cell(fuzzer._rng)
    hostile = Hostile(fuzzer._rng, cell, writes=True)
    for _ in range(300):
        for sender in (LIAR.peer, COORDINATOR.peer):
            message = hostile.next()
            cell.inject(sender, HONEST[0], message)
        cell.pass_time(100)
    heights = [chain.state.height for chain in cell.nodes[HONEST[0]].chains.values()]
    assert max(heights) > 0


def test_a_seed_knows_all_places_in_its_frame() -> None:
    seed = Seed(b"\x92\x01\x92\xa1a\x90")
    assert [seed.at(path) for path in seed.paths] == [1, ["a", []], "a", []]

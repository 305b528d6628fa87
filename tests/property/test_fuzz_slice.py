"""A few seconds of `make fuzz`, and that it finds what it is there to find."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import fuzz
import pytest
from fuzz import MANNERS, Fuzzer, Job, Stage
from fuzz_captured import Puppeteer
from fuzz_cell import Cell
from fuzz_corpus import corpus
from fuzz_door import Doors
from fuzz_files import Folders, Proofs, States
from fuzz_hostile import Hostile
from fuzz_judge import Broken, Judge
from fuzz_kinds import BODIES, MESSAGES, kinds_in, missing
from fuzz_mutation import Seed
from fuzz_world import COORDINATOR, GENESES, HONEST, LIAR, NETWORK, small_world

import edgepool.model.codec
from edgepool.core.consensus.votes import VoteBook
from edgepool.core.ledger.state import ChainState
from edgepool.core.node import Node
from edgepool.model.codec import encode
from edgepool.model.ids import PeerId
from edgepool.model.message import Message, Query, Records, decode_message
from edgepool.model.record import MembershipChange, sign_record
from edgepool.model.vote import Equivocation, Vote

SOME_SEEDS = range(22, 42)
CALM, LONG, CHANGING, CAPTURED, _ = MANNERS


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_world():
        yield


def test_mutated_frames_hostile_messages_and_damaged_files_raise_nothing() -> None:
    outcome = Fuzzer(Job(seed=16, worker=0, executions=60_000, node_share=40)).run()
    assert outcome.errors == []
    assert outcome.executions == 60_000
    assert outcome.nodes > 1_000
    assert outcome.files > 1_000
    assert outcome.doors > 1_000
    assert outcome.accepted > 5_000
    assert missing(outcome.kinds) == []


def test_the_same_seed_makes_the_same_run() -> None:
    first, second = (Fuzzer(Job(12, 0, 400, 2)).run() for _ in range(2))
    other = Fuzzer(Job(13, 0, 400, 2)).run()
    assert first.trace == second.trace
    assert (first.accepted, first.nodes, first.kinds) == (second.accepted, second.nodes, second.kinds)
    assert other.trace != first.trace


# --- kinds ----------------------------------------------------------------------------------------


def test_every_kind_of_message_and_record_is_made_up_and_is_in_the_corpus() -> None:
    made, seeds = dict[str, None](), dict[str, None]()
    hostile = Hostile(Random(5), Cell(Random(5), LONG))
    for _ in range(1_500):
        made.update(dict.fromkeys(kinds_in(hostile.next())))
    for kind, frames in corpus(Random(6)):
        if kind is Message:
            for seed in frames:
                seeds.update(dict.fromkeys(kinds_in(decode_message(seed.frame))))
    assert missing(made) == []
    assert missing(seeds) == []


def test_a_kind_that_is_never_met_fails_the_run() -> None:
    assert len(MESSAGES) > 20
    assert len(BODIES) > 10
    assert missing([kind for kind in (*MESSAGES, *BODIES) if kind not in ("Join", "Statement")]) == [
        "Join",
        "Statement",
    ]


# --- what it finds in decoders and nodes ----------------------------------------------------------


def test_a_crash_in_a_decoder_is_reported_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzer = Fuzzer(Job(14, 0, 20_000, 1_000_000))
    real = encode(1)

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
    monkeypatch.setattr(fuzz, "ERRORS_KEPT", 1)
    fuzzer = Fuzzer(Job(15, 0, 2_000, 1))
    real = Node._receive

    def planted(self: Node, peer: Any, message: Any, now: Any) -> Any:
        if isinstance(message, Query) and message.hops_left == 8:
            raise IndexError("planted")
        return real(self, peer, message, now)

    monkeypatch.setattr(Node, "_receive", planted)
    found = fuzzer.run().errors[0]
    assert "unhandled in a node" in found
    assert "planted" in found


def test_a_member_that_forgets_what_it_said_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "ERRORS_KEPT", 1)
    monkeypatch.setattr(VoteBook, "said", lambda self, kind, round, voter: None)
    real = VoteBook.votes_of

    def forgetful(self: VoteBook, voter: Any) -> tuple[Vote, ...]:
        return real(self, voter)[:0]

    monkeypatch.setattr(VoteBook, "votes_of", forgetful)
    monkeypatch.setattr("edgepool.core.consensus.engine.Engine._recall", lambda self: False)
    # It shows early with the first of these seeds.
    seeds = (27, *SOME_SEEDS)
    errors = (error for seed in seeds for error in Fuzzer(Job(seed, 0, 3_000, 1)).run().errors)
    assert any("two values signed" in error for error in errors)


def test_members_that_believe_forged_evidence_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Equivocation, "problem", lambda self, network, chain: "")
    cell = Cell(Random(16), LONG)
    hostile, chain = Hostile(Random(16), cell), cell.nodes[HONEST[0]].chains[GENESES[0].chain]

    def accuse() -> None:
        for nonce in range(200):
            signed = sign_record(LIAR, NETWORK, chain.id, hostile._evidence(chain), 0, nonce)
            cell.inject(LIAR.peer, HONEST[0], Records(chain.id, (signed,)))
            cell.pass_time(500)

    with pytest.raises(Broken, match="an honest member is convicted"):
        accuse()


def test_a_pool_that_stands_still_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(Random(1), LONG)
    cell.prove_alive()
    monkeypatch.setattr("edgepool.core.intake.Intake.any_fit", lambda self: False)
    with pytest.raises(Broken, match="stands still"):
        cell.prove_alive()


def test_a_state_that_the_members_have_not_made_is_found() -> None:
    cell = Cell(Random(1), LONG)
    cell.prove_alive()
    chain = cell.nodes[HONEST[0]].chains[GENESES[0].chain]
    cell.judge.looks_at(chain)
    chain.state.beacon = bytes(32)
    chain.state._rest = None
    with pytest.raises(Broken, match="two states"):
        cell.judge.looks_at(chain)


def test_changes_of_members_need_a_reason() -> None:
    judge, chain = Judge(manual=True), GENESES[0].chain
    assert not judge._reason(chain, _nobody("x"))
    judge.wanted["x", ""] = None
    assert judge._reason(chain, _nobody("x"))


# --- hostile messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("manner", [CALM, LONG, CHANGING], ids=lambda manner: manner.name)
def test_hostile_messages_reach_a_node_and_the_pool_lives_on(manner: Any) -> None:
    stage = Stage(Random(17), manner)
    for _ in range(200):
        for sender in (LIAR.peer, COORDINATOR.peer):
            message = decode_message(encode(stage.hostile.next()))
            stage.cell.inject(*(stage.hostile.address or (sender, HONEST[0])), message)
        stage.cell.pass_time(200)
    stage.cell.prove_alive()
    for genesis in GENESES:
        heights = [node.chains[genesis.chain].state.height for node in stage.cell.nodes.values()]
        assert min(heights) > 0


def test_liars_are_convicted_and_leave_and_nobody_else_does() -> None:
    cell = Cell(Random(18), CHANGING)
    hostile = Hostile(Random(18), cell)
    for _ in range(600):
        cell.inject(LIAR.peer, HONEST[0], hostile._votes())
        cell.pass_time(500)
        if cell.changed:
            break
    cell.prove_alive()
    left = [node.chains[genesis.chain].state.former for node in cell.nodes.values() for genesis in GENESES]
    assert {peer: None for former in left for peer in former} == {LIAR.peer: None}


def test_made_up_states_are_taken_over_in_a_captured_pool_and_do_no_harm() -> None:
    for seed in SOME_SEEDS:  # in some worlds it does not come to it
        cell = Cell(Random(seed), CAPTURED)
        puppeteer = Puppeteer(Random(seed), cell)
        for _ in range(500):
            message = decode_message(encode(puppeteer.next()))
            cell.inject(*puppeteer.address, message)
            cell.pass_time(puppeteer.wait_ms or 100)
            if cell.adopted > 1:
                break
        cell.prove_alive()
        if cell.adopted > 1:
            break
    assert cell.captured is not None
    victim = cell.nodes[HONEST[0]].chains[cell.captured.chain]
    assert cell.adopted > 1
    assert victim.state.height > 10


# --- files ----------------------------------------------------------------------------------------


def test_damaged_proofs_states_and_folders_are_found_out() -> None:
    rng = Random(20)
    folders = Folders(rng)
    try:
        for target, times in ((Proofs(rng), 500), (States(rng), 500), (folders, 150)):
            for _ in range(times):
                target.run()
    finally:
        folders.close()


def test_proofs_states_and_folders_that_are_not_checked_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(21)
    monkeypatch.setattr("fuzz_files.record_proof_fault", lambda proof, chains: None)
    with pytest.raises(Broken, match="holds"):
        _until_broken(Proofs(rng))
    states = States(rng)  # made of snapshots that are right
    monkeypatch.setattr(ChainState, "snapshot", lambda self: b"")
    with pytest.raises(Broken, match="another way"):
        _until_broken(states)
    folders = Folders(rng)
    monkeypatch.setattr(ChainState, "header_problem", lambda self, header: "")
    monkeypatch.setattr("edgepool.core.replay.ChainState.root", property(lambda self: bytes(32)))
    try:
        with pytest.raises(Broken, match="another chain"):
            _until_broken(folders)
    finally:
        folders.close()


def test_doors_let_in_what_was_given_out_and_nothing_else() -> None:
    doors = Doors(Random(22))
    try:
        for _ in range(3_000):
            doors.run()
    finally:
        doors.close()


@pytest.mark.parametrize("name", ["credential.has_issued", "channelproof.verify"])
def test_a_door_that_does_not_look_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(f"edgepool.model.{name}", lambda *_: True)
    doors = Doors(Random(23))
    try:
        with pytest.raises(Broken, match=r"nobody has issued|has not made|without the proof"):
            _until_broken(doors)
    finally:
        doors.close()


def test_a_seed_knows_all_places_in_its_frame() -> None:
    seed = Seed(b"\x92\x01\x92\xa1a\x90")
    assert [seed.at(path) for path in seed.paths] == [1, ["a", []], "a", []]
    mapped = Seed(b"\x91\x81\x07\xa1a")
    assert [mapped.at(path) for path in mapped.paths] == [{7: "a"}, "a"]


def _until_broken(target: Any) -> None:
    for _ in range(1_000):
        target.run()


def _nobody(outgoing: str) -> MembershipChange:
    return MembershipChange(1, PeerId(outgoing), None, b"", b"", "")

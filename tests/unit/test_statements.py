from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ledger_world import World

from edgepool.core.ledger import statements
from edgepool.core.ledger.state import ChainState
from edgepool.core.ledger.statements import MAX_EFFECTS, MAX_NAMES, MAX_VALUES, register
from edgepool.errors import LocalError
from edgepool.model.record import SignedRecord, Statement


class Board:
    """'key=value key=value': keeps what is said; refuses what says 'no'."""

    name = "board"
    version = 1

    def problem(self, view: Any, signed: SignedRecord) -> str:
        if signed.record.body.payload == b"crash":
            raise KeyError("a bug")
        return "it says no" if signed.record.body.payload == b"no" else ""

    def effects(self, view: Any, signed: SignedRecord) -> dict[str, bytes]:
        words = (word.partition("=") for word in signed.record.body.payload.decode().split())
        return {key: value.encode() for key, _, value in words}


class Strange:
    """Answers and writes whatever it is given."""

    name = "strange"
    version = 1

    def __init__(self, answer: Any = "", effects: Any = None) -> None:
        self._answer = answer
        self._effects = effects

    def problem(self, view: Any, signed: SignedRecord) -> Any:
        return self._answer

    def effects(self, view: Any, signed: SignedRecord) -> Any:
        return self._effects


class Plain:
    name = "plain"
    version = 1

    def problem(self, view: Any, signed: SignedRecord) -> str:
        return ""


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "STATEMENTS", {})
    register(Board())


@pytest.fixture
def world() -> World:
    return World()


def said(world: World, payload: bytes, contract: str = "board", version: int = 1) -> SignedRecord:
    return world.record(world.signers[0], Statement(contract, version, payload))


def test_statement_is_judged_by_the_contract_that_it_names(world: World) -> None:
    draft = world.state.draft()
    assert draft.add(said(world, b"a=1")) == ""
    assert draft.add(said(world, b"no")) == "contract 'board' version 1: it says no"
    assert "no contract 'board' version 2 is registered here" in draft.add(said(world, b"", version=2))
    assert "no contract 'other' version 1 is registered here" in draft.add(said(world, b"", "other"))


def test_only_members_write_statements(world: World) -> None:
    body = Statement("board", 1, b"a=1")
    assert "only as a member" in world.state.draft().add(world.record(world.coordinator, body))
    assert "no member" in world.state.draft().add(world.record(world.outsider, body))


def test_contract_that_fails_refuses(world: World) -> None:
    assert "has failed (KeyError)" in world.state.draft().add(said(world, b"crash"))


@pytest.mark.parametrize(
    ("answer", "effects", "reason"),
    [
        (None, {}, "has failed"),
        ("", None, "has failed"),
        ("", {"": b"1"}, "key"),
        ("", {"x" * 65: b"1"}, "key"),
        ("", {1: b"1"}, "key"),
        ("", {"a": "text"}, "no bytes"),
        ("", {"a": b"x" * 1025}, "more than 1024"),
        ("", {str(n): b"1" for n in range(MAX_EFFECTS + 1)}, "16 are allowed for each statement"),
        ("x" * 500, {}, "contract 'strange'"),
    ],
)
def test_answers_out_of_bounds_refuse(world: World, answer: Any, effects: Any, reason: str) -> None:
    register(Strange(answer, effects))
    problem = world.state.draft().add(said(world, b"", "strange"))
    assert reason in problem
    assert len(problem) <= 256


def test_what_is_written_can_be_read_replaced_and_taken_away(world: World) -> None:
    world.pack(said(world, b"b=2 a=1"), said(world, b"b=3"))
    assert list(world.state.values("board").items()) == [("a", b"1"), ("b", b"3")]
    world.pack(said(world, b"a="))
    assert dict(world.state.values("board")) == {"b": b"3"}
    assert dict(world.state.values("unheard of")) == {}


def test_values_cannot_be_changed_from_outside(world: World) -> None:
    with pytest.raises(TypeError):
        world.state.values("board")["a"] = b"1"  # type: ignore[index]


def test_draft_writes_nothing_into_the_state(world: World) -> None:
    world.pack(said(world, b"a=1"))
    draft = world.state.draft()
    assert draft.add(said(world, b"a=2 c=3")) == ""
    assert dict(world.state.values("board")) == {"a": b"1"}


def test_values_of_a_name_are_bounded(world: World) -> None:
    size = MAX_EFFECTS
    full = [
        " ".join(f"{n}=1" for n in range(start, start + size)).encode()
        for start in range(0, MAX_VALUES, size)
    ]
    world.pack(*(said(world, payload) for payload in full))
    assert f"{MAX_VALUES} are allowed" in world.state.draft().add(said(world, b"more=1"))
    assert world.state.draft().add(said(world, b"0= more=1")) == ""


def test_contract_without_effects_writes_nothing(world: World) -> None:
    register(Plain())
    world.pack(said(world, b"anything", "plain"))
    assert dict(world.state.values("plain")) == {}
    assert world.state.counts["statement"] == 1


def test_block_with_an_unregistered_contract_cannot_be_followed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = world.pack(said(world, b"a=1"))
    fresh = ChainState(world.genesis)
    monkeypatch.delitem(statements.STATEMENTS, ("board", 1))
    with pytest.raises(LocalError, match="register it before the peer is opened"):
        fresh.apply(block)
    assert (fresh.height, fresh.counts["statement"]) == (0, 0)


def test_what_was_written_is_in_the_root_and_in_the_snapshot(world: World) -> None:
    before = world.state.root
    world.pack(said(world, b"a=1 b=2"))
    assert world.state.root != before
    restored = ChainState.restore(world.genesis, world.state.snapshot())
    assert restored.root == world.state.root
    assert dict(restored.values("board")) == {"a": b"1", "b": b"2"}


# --- registration


@pytest.mark.parametrize("name", ["", "x" * 65, " a", "a\n", 7])
def test_name_must_be_a_name(name: Any) -> None:
    contract = Plain()
    contract.name = name
    with pytest.raises(LocalError, match="cannot be called"):
        register(contract)


@pytest.mark.parametrize("version", [0, 65536, "1"])
def test_version_must_be_a_version(version: Any) -> None:
    contract = Plain()
    contract.version = version
    with pytest.raises(LocalError, match="from 1 to 65535"):
        register(contract)


def test_rule_cannot_be_replaced_under_its_version() -> None:
    register(plain := Plain())
    register(plain)
    with pytest.raises(LocalError, match="registered already"):
        register(Plain())


def test_names_are_bounded() -> None:
    for number in range(MAX_NAMES - 1):
        contract = Plain()
        contract.name = f"plain {number}"
        register(contract)
    newer = Board()
    newer.version = 2
    register(newer)
    with pytest.raises(LocalError, match="one too many"):
        register(Plain())


# --- the page


def test_example_of_the_page_does_what_it_says(world: World) -> None:
    page = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {"__name__": "example"})

    def loan(author: int, payload: bytes) -> SignedRecord:
        return world.record(world.signers[author], Statement("tool-loan", 1, payload))

    world.pack(loan(0, b"take T4711"))
    assert dict(world.state.values("tool-loan")) == {"T4711": world.peers[0].encode()}
    draft = world.state.draft()
    assert f"tool T4711 is with {world.peers[0]}" in draft.add(loan(1, b"take T4711"))
    assert "not with the author" in draft.add(loan(1, b"return T4711"))
    assert "write 'take TOOL'" in draft.add(loan(1, b"lend it"))
    assert "has failed" in draft.add(loan(1, b"\xff"))
    assert draft.add(loan(0, b"return T4711")) == ""
    assert draft.add(loan(1, b"take T4711")) == ""

"""Contracts of the users' own: classes registered under a name and a version, which judge statements.

A contract is a pure function of what the chain knows and the record. Members whose contracts differ stop
at the first block where it shows, so all members of a pool register the same ones, before they start; a
rule is never edited once chains hold statements of it, it gets a new version. What a contract writes
belongs to its name, is part of the chain's state, and is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from edgepool.core.ledger.view import Contract, View
from edgepool.errors import LocalError
from edgepool.model.ids import ChainId
from edgepool.model.record import SignedRecord, Statement

MAX_NAMES = 16
"""How many names can be registered."""
MAX_VALUES = 1024
"""How many values the contracts of one name can keep."""
MAX_VALUE_BYTES = 1024
MAX_KEY_CHARACTERS = 64
MAX_EFFECTS = 16
"""How many values one statement can write."""

STATEMENTS: dict[tuple[str, int], Contract] = {}
"""The users' contracts by name and version."""

_NOTHING: Mapping[str, bytes] = MappingProxyType({})


@runtime_checkable
class WritingContract(Contract, Protocol):
    """A contract that keeps something of the statements which it has let stand."""

    def effects(self, view: View, signed: SignedRecord) -> Mapping[str, bytes]:
        """Return what to write, by key; b'' takes a key away. Asked only of what `problem` lets stand."""
        ...


def register(contract: Contract) -> None:
    """Let `contract` judge the statements that name it; it may have `effects` (see WritingContract).

    LocalError if its name or version is not one, is taken by another, or would be one name too many.
    """
    name, version = contract.name, contract.version
    if not (isinstance(name, str) and 0 < len(name) <= 64 and name.isprintable() and name == name.strip()):
        raise LocalError(
            f"a contract cannot be called {name!r:.80}: "
            "write 1 to 64 printable characters without outer spaces"
        )
    if not isinstance(version, int) or not 1 <= version <= 65535:
        raise LocalError(f"contract '{name}' has the version {version!r:.20}: write a number from 1 to 65535")
    if STATEMENTS.get((name, version), contract) is not contract:
        raise LocalError(
            f"contract '{name}' version {version} is registered already: give yours a new version"
        )
    names = {one: None for one, _ in STATEMENTS}
    if name not in names and len(names) >= MAX_NAMES:
        raise LocalError(f"contract '{name}' is one too many: {MAX_NAMES} names can be registered")
    STATEMENTS[name, version] = contract


class StatementContract:
    """A statement stands if the contract that it names is registered here and lets it stand."""

    name = "statement"
    version = 1

    def problem(self, view: View, signed: SignedRecord) -> str:
        """Say why this statement may not stand, or return ''; what it would write is judged too."""
        body = signed.record.body
        assert isinstance(body, Statement)
        contract = STATEMENTS.get((body.contract, body.version))
        if contract is None:
            return _unknown(body)
        try:
            problem = contract.problem(view, signed)
            if not isinstance(problem, str):
                raise TypeError("a verdict is a text")
            if not problem:
                problem = _effects_problem(view, body.contract, _effects(contract, view, signed))
        except Exception as error:  # the users' code; the same record fails the same way everywhere
            problem = f"its contract has failed ({type(error).__name__})"
        return f"contract '{body.contract}' version {body.version}: {problem}"[:256] if problem else ""


def effects_of(view: View, signed: SignedRecord) -> Mapping[str, bytes]:
    """Return what the contract of a statement that stands writes; nothing for other kinds of records."""
    body = signed.record.body
    if not isinstance(body, Statement):
        return _NOTHING
    return _effects(STATEMENTS[body.contract, body.version], view, signed)


def check_registered(chain: ChainId, records: Iterable[SignedRecord]) -> None:
    """Raise LocalError unless all contracts that records of `chain` name are registered here."""
    for signed in records:
        body = signed.record.body
        if isinstance(body, Statement) and (body.contract, body.version) not in STATEMENTS:
            raise LocalError(
                f"chain {chain} holds a statement that cannot be followed, as {_unknown(body)}: "
                "register it before the peer is opened"
            )


def _unknown(body: Statement) -> str:
    return f"no contract '{body.contract}' version {body.version} is registered here"


def _effects(contract: Contract, view: View, signed: SignedRecord) -> Mapping[str, bytes]:
    return contract.effects(view, signed) if isinstance(contract, WritingContract) else _NOTHING


def _effects_problem(view: View, contract: str, effects: Mapping[str, bytes]) -> str:
    if len(effects) > MAX_EFFECTS:
        return f"it writes {len(effects)} values, {MAX_EFFECTS} are allowed for each statement"
    kept = dict(view.values(contract))
    for key, value in effects.items():
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_CHARACTERS:
            return f"it writes under a key that is no text of 1 to {MAX_KEY_CHARACTERS} characters"
        if not isinstance(value, bytes) or len(value) > MAX_VALUE_BYTES:
            return f"it writes a value that is no bytes, or more than {MAX_VALUE_BYTES} of them"
        if value:
            kept[key] = value
        else:
            kept.pop(key, None)
    return f"it keeps {len(kept)} values, {MAX_VALUES} are allowed" if len(kept) > MAX_VALUES else ""

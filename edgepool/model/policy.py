"""Data policies: what the owner of data says of who may have it, until when and for what [S2.3].

A policy is a record on the chain on which the data is offered, so every holder there knows it, and it can be
proved to those that take the data elsewhere.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.model.codec import Wire
from edgepool.model.fields import ChainText, Name, PeerText, TimeMs
from edgepool.model.identity import Role
from edgepool.model.twin import DataKey

MAX_NAMED = 8
"""How many organisations, and how many purposes, one policy names."""
MAX_NAMED_PEERS = 24
MAX_NAMED_POOLS = 16
Purpose = Annotated[str, Meta(max_length=64)]
"""What data is wanted for, as the one who wants it says; '' if it does not say."""


class PolicyTerms(Wire, frozen=True):
    """The conditions of a policy: all that are named must hold, one that names nothing asks nothing.

    `members` and `pools` are peers and chains, `organisations` are those of certificates. Without `roles` it
    is for those that the table of rights lets read by default. `valid_until_ms` 0 is without end; behind its
    end nobody has the data. A `hidden` policy keeps its offers out of answers to other pools.
    """

    members: Annotated[tuple[PeerText, ...], Meta(max_length=MAX_NAMED_PEERS)] = ()
    pools: Annotated[tuple[ChainText, ...], Meta(max_length=MAX_NAMED_POOLS)] = ()
    organisations: Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMED)] = ()
    roles: Annotated[tuple[Role, ...], Meta(max_length=6)] = ()
    purposes: Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMED)] = ()
    valid_until_ms: TimeMs = 0
    hidden: bool = False


class DataPolicy(Wire, tag="policy", frozen=True):
    """The author says who may have its data whose keys fit a pattern.

    `part` and `kind` are those of a key, or end in '*' and stand for all that begin like that. `version`
    is 1 + that of the author's standing policy of this pattern. `terms` None takes that policy back.
    """

    part: Annotated[str, Meta(min_length=1, max_length=64)]
    kind: Annotated[str, Meta(min_length=1, max_length=32)]
    version: Annotated[int, Meta(ge=1, le=2**31)]
    terms: PolicyTerms | None

    @property
    def pattern(self) -> DataKey:
        """What the policy is for, in the form of a key."""
        return DataKey(self.part, self.kind)


def fits(pattern: DataKey, key: DataKey) -> bool:
    """Say whether a policy of `pattern` is for `key`."""
    return _fits(pattern.part, key.part) and _fits(pattern.kind, key.kind)


def precision(pattern: DataKey) -> tuple[bool, int, bool, int]:
    """Return how precise a pattern is: of two that fit a key the larger one counts, part before kind."""
    part, kind = pattern.part, pattern.kind
    return not part.endswith("*"), len(part), not kind.endswith("*"), len(kind)


def _fits(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern

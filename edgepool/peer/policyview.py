"""How a data policy looks to programs and people."""

from __future__ import annotations

import msgspec


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """A data policy as it stands on a chain, for people: with the names beside the ids."""

    chain: str
    pool: str
    owner: str
    owner_name: str
    pattern: str
    version: int
    members: list[str]
    member_names: list[str]
    pools: list[str]
    pool_names: list[str]
    organisations: list[str]
    roles: list[str]
    purposes: list[str]
    valid_until_ms: int
    hidden: bool

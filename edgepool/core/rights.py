"""Who may do what in a network [S1.2, S3.6]: one table of roles and acts, one function that reads it.

The table is data, so that it can be shown ('edgepool rights') and tested whole. What a chain judges by it
depends on the chain alone: the roles that stand in its roster, its genesis and its records. What a peer
judges for itself (whose invitation it believes, whom it lets follow its chains) depends on the roles that
certificates prove.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from edgepool.config import Default
from edgepool.model.identity import ROLES, Role
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.policy import PolicyTerms

Standing = Literal["anybody", "member", "observer", "people", "coordinator", "trusted", "default", "named"]
"""On what footing a role may act; see STANDINGS."""

STANDINGS: dict[Standing, str] = {
    "anybody": "as any peer of the network",
    "member": "as a member of the pool",
    "observer": "as an observer of the pool",
    "people": "as one of the pool's people: who is in it, comes into it, or has left it",
    "coordinator": "as the pool's own coordinator",
    "trusted": "if the settings of those who join name it among the coordinators",
    "default": "where the policy of the data's owner, or else the holder's default, lets it",
    "named": "where a policy of the data's owner names its role",
}

Act = Literal[
    "write requirement",
    "write procedure",
    "write completion",
    "write inspection",
    "write demand",
    "write offer",
    "write confirmation",
    "write receipt",
    "write complaint",
    "write membership",
    "write trust",
    "write evidence",
    "write anchor",
    "write statement",
    "write policy",
    "write succession",
    "form pool",
    "vote",
    "take work",
    "follow chain",
    "search",
    "read data",
    "invite",
]
"""Everything that a peer can do to others; 'write KIND' stands for a record of that kind."""

_Grant = tuple[Standing, ...]
_NO: _Grant = ()
_ANYBODY: _Grant = ("anybody",)
_MEMBER: _Grant = ("member",)
_OBSERVER: _Grant = ("observer",)
_OWN: _Grant = ("coordinator",)
_OBSERVER_OR_OWN: _Grant = ("observer", "coordinator")
_MEMBER_OR_OWN: _Grant = ("member", "coordinator")
_PEOPLE: _Grant = ("people",)
_TRUSTED: _Grant = ("trusted",)
_DEFAULT: _Grant = ("default",)
_NAMED: _Grant = ("named",)


class Right(NamedTuple):
    """One row of the table: what the act is, in words that follow 'may', and a grant for each of ROLES."""

    does: str
    machine: _Grant
    coordinator: _Grant
    witness: _Grant
    inspector: _Grant
    regulator: _Grant
    client: _Grant

    def grant(self, role: Role) -> _Grant:
        """Return on which footings `role` may do this; () for never."""
        return self[1 + ROLES.index(role)]  # type: ignore[return-value]


_WORKS = (_MEMBER, _MEMBER, _NO, _NO, _NO, _NO)
_MEMBERS = (_MEMBER, _MEMBER, _MEMBER, _MEMBER, _NO, _NO)

RIGHTS: Mapping[Act, Right] = {
    "write requirement": Right("state requirements", _NO, _OWN, _NO, _NO, _NO, _NO),
    "write procedure": Right("report that a step has started", *_WORKS),
    "write completion": Right("report that a step is complete", *_WORKS),
    "write inspection": Right("report inspections", _MEMBER, _MEMBER, _NO, _MEMBER, _NO, _NO),
    "write demand": Right("demand data", _MEMBER, _MEMBER, _MEMBER, _MEMBER, _NO, _OBSERVER),
    "write offer": Right("offer data", *_MEMBERS),
    "write confirmation": Right("confirm transfers", *_MEMBERS),
    "write receipt": Right("acknowledge data", _MEMBER, _MEMBER, _MEMBER, _MEMBER, _NO, _OBSERVER),
    "write complaint": Right("complain of holders", _MEMBER, _MEMBER, _MEMBER, _MEMBER, _NO, _OBSERVER),
    "write membership": Right("say who is in a pool", _MEMBER, _MEMBER_OR_OWN, _MEMBER, _MEMBER, _NO, _NO),
    "write trust": Right("say whom to trust", _MEMBER, _MEMBER_OR_OWN, _MEMBER, _MEMBER, _NO, _NO),
    "write evidence": Right("give evidence", *_MEMBERS),
    "write anchor": Right("anchor chains", *_MEMBERS),
    "write statement": Right("make statements", *_MEMBERS),
    "write policy": Right("set policies for data", *_MEMBERS),
    "write succession": Right(
        "say, without a vote, that it has another key",
        _OBSERVER,
        _OBSERVER_OR_OWN,
        *(_OBSERVER,) * 4,
    ),
    "form pool": Right("form pools", _NO, _TRUSTED, _NO, _NO, _NO, _NO),
    "vote": Right("be a member of a pool", *(_ANYBODY,) * 4, _NO, _NO),
    "take work": Right("be given work", *_WORKS),
    "follow chain": Right("follow a pool's chain", *(_PEOPLE,) * 4, _ANYBODY, _PEOPLE),
    "search": Right("ask who has data", *(_ANYBODY,) * 4, _NO, _ANYBODY),
    "read data": Right("read data", *(_DEFAULT,) * 4, _NO, _NAMED),
    "invite": Right("invite gateways", _NO, _ANYBODY, _NO, _NO, _NO, _NO),
}
"""The whole table."""

assert tuple(RIGHTS) == get_args(Act)

_GRANTS: Mapping[tuple[Act, Role], _Grant] = {
    (act, role): right.grant(role) for act, right in RIGHTS.items() for role in ROLES
}

WRITING: Mapping[str, Act] = {act.removeprefix("write "): act for act in RIGHTS if act.startswith("write ")}
"""The act of writing a record, by its kind."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who wants to do something: its role and its organisation are what its certificate, or a chain, says."""

    peer: PeerId
    role: Role = "machine"
    organisation: str = ""


def refusal(act: Act, subject: Subject, standing: tuple[Standing, ...] = ()) -> str:
    """Say why `subject` may not do `act` on the footings of `standing`, or return ''.

    The sentence names the condition that failed: the role, or the footing that is missing.
    """
    grant = _GRANTS[act, subject.role]
    for one in grant:
        if one in standing or one == "anybody":
            return ""
    right = RIGHTS[act]
    if not grant:
        *most, last = [named(role) for role in ROLES if right.grant(role)]
        those = f"{', '.join(most)} or {last}" if most else last
        return f"{named(subject.role)} may not {right.does}: only {those} may"
    return f"{named(subject.role)} may {right.does} only {' or '.join(STANDINGS[one] for one in grant)}"


@dataclass(frozen=True, slots=True)
class Reading:
    """The circumstances under which somebody wants data: what for, when (wall time), and where it is.

    `pools` are the chains that the holder knows the asker to be one of the people of; `offered_in` is among
    them, or not, and says where the data is offered. `default` is the holder's for data without a policy.
    """

    purpose: str
    now_ms: int
    pools: Collection[ChainId]
    offered_in: ChainId
    default: Default


def data_refusal(subject: Subject, terms: PolicyTerms | None, reading: Reading) -> str:
    """Say why `subject` may not read data under `terms` (None: without a policy), or return '' [S2.3].

    The sentence names the first condition that fails: the policy's end, the role, then members, pools,
    organisations and purposes.
    """
    if terms is None:
        return refusal("read data", subject, ("default",)) or _default_refusal(reading)
    if 0 < terms.valid_until_ms < reading.now_ms:
        return "the owner's policy has ended"
    standing: tuple[Standing, ...] = ("default",)
    if terms.roles:
        if RIGHTS["read data"].grant(subject.role) and subject.role not in terms.roles:
            return f"role '{subject.role}' is not among {', '.join(terms.roles)}"
        standing = ("default", "named")
    refused = refusal("read data", subject, standing)
    if refused:
        return refused
    if terms.members and subject.peer not in terms.members:
        return f"peer {subject.peer} is not among the members that the owner's policy names"
    if terms.pools and not any(pool in reading.pools for pool in terms.pools):
        return "the asker is in none of the pools that the owner's policy names"
    if terms.organisations and subject.organisation not in terms.organisations:
        return f"organisation '{subject.organisation}' is not among those that the owner's policy names"
    if terms.purposes and reading.purpose not in terms.purposes:
        purposes = ", ".join(terms.purposes)
        if not reading.purpose:
            return f"no purpose is stated, and it must be one of {purposes}"
        return f"purpose '{reading.purpose}' is not among {purposes}"
    return ""


def _default_refusal(reading: Reading) -> str:
    if reading.default == "owner":
        return "this holder hands over only what its owner has set a policy for"
    if reading.default == "pool" and reading.offered_in not in reading.pools:
        return "without a policy this holder hands data only to peers of the pool that it is offered in"
    return ""


def named(role: Role) -> str:
    """Return a role with its article."""
    return f"{'an' if role == 'inspector' else 'a'} {role}"

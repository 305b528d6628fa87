"""Which key has the place of one that the settings name: what is believed, of whom, and what liars get."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from ledger_world import World
from msgspec.structs import replace

from edgepool.config import KnownPeer, PeerSettings
from edgepool.core import heirs as table
from edgepool.core.heirs import Heirs
from edgepool.core.machine import (
    Effect,
    Instant,
    KeySucceeded,
    Misbehaved,
    Notify,
    PeerUp,
    Received,
    Send,
    WantLink,
)
from edgepool.core.node import Node
from edgepool.core.rights import Subject
from edgepool.model.codec import decode, encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.identity import Role
from edgepool.model.ids import PeerId
from edgepool.model.lineage import MAX_LINE, KeyFollows, Line, Lineage, follow
from edgepool.model.message import Hello, Reachable, decode_message
from edgepool.storage.memory import MemoryStore

NETWORK = "works"
KEYS = [Signer(sha256(f"cloud {n}".encode())) for n in range(MAX_LINE + 4)]
OLD, NEW, NEXT = KEYS[:3]
ME, OTHER, THIEF = (Signer(sha256(name.encode())) for name in ("me", "other", "thief"))
AT = "/ip4/10.0.0.1/tcp/4001/p2p/"


def line_of(*keys: Signer, network: str = NETWORK) -> Line:
    return tuple(follow(one, later, network) for one, later in pairwise(keys))


def heirs(*, known: Signer | None = None, line: Line = (), me: Signer = ME, **settings: object) -> Heirs:
    peers = (KnownPeer(name="cloud", address=AT + known.peer),) if known is not None else ()
    wanted: dict[str, object] = {"coordinators": (OLD.peer,), "known_peers": peers} | settings
    made = PeerSettings(name="mill", network=NETWORK, folder=Path("."), **wanted)  # type: ignore[arg-type]
    return Heirs(made, me.peer, line)


def say(one: Heirs, who: Signer, line: Line, role: Role = "coordinator") -> list[Effect]:
    one.peer_up(who.peer)
    return one.receive(Subject(who.peer, role), Lineage(line))


def notices(effects: list[Effect]) -> list[object]:
    return [effect.notice for effect in effects if isinstance(effect, Notify)]


def is_blamed(effects: list[Effect]) -> bool:
    return any(isinstance(notice, Misbehaved) for notice in notices(effects))


def test_a_coordinators_heir_is_trusted_in_its_place() -> None:
    one = heirs()
    trusted = one.coordinators
    assert list(trusted) == [OLD.peer]
    assert notices(say(one, NEW, line_of(OLD, NEW))) == [KeySucceeded(OLD.peer, NEW.peer)]
    assert list(trusted) == [NEW.peer]
    assert one.heir(OLD.peer) == NEW.peer
    assert say(one, NEW, line_of(OLD, NEW)) == []
    assert notices(say(one, NEXT, line_of(OLD, NEW, NEXT))) == [
        KeySucceeded(OLD.peer, NEXT.peer),
        KeySucceeded(NEW.peer, NEXT.peer),
    ]
    assert list(trusted) == [NEXT.peer]


def test_who_was_away_for_several_changes_hears_of_all_at_once_and_later_lines_may_begin_later() -> None:
    one = heirs()
    say(one, KEYS[MAX_LINE], line_of(*KEYS[: MAX_LINE + 1]))
    assert one.heir(OLD.peer) == KEYS[MAX_LINE].peer
    later = line_of(*KEYS[2:])
    assert len(later) == MAX_LINE + 1
    say(one, KEYS[-1], later[-MAX_LINE:])
    assert list(one.coordinators) == [KEYS[-1].peer]


def test_a_line_of_nobody_who_is_named_costs_nothing_and_changes_nothing() -> None:
    one = heirs()
    forged = replace(line_of(OTHER, THIEF)[0], heir_signature=bytes(64))
    assert say(one, THIEF, (forged,)) == []
    assert one.heir(OTHER.peer) == OTHER.peer


@pytest.mark.parametrize(
    ("who", "line"),
    [
        (THIEF, line_of(OLD, NEW)),
        (THIEF, (*line_of(OLD, NEW), *line_of(OTHER, THIEF))),
        (NEW, line_of(OLD, NEW, network="other works")),
        (OLD, line_of(OLD, OLD)),
        (OLD, line_of(OLD, NEW, OLD)),
        (NEW, line_of(NEW, OLD, NEW)),
        (NEW, (replace(line_of(OLD, NEW)[0], former_signature=bytes(64)),)),
        (NEW, (replace(line_of(OLD, NEW)[0], heir_signature=bytes(64)),)),
        (THIEF, (replace(line_of(OTHER, THIEF)[0], former=OLD.peer),)),
        (NEW, (KeyFollows(PeerId("?" * 52), OLD.peer, bytes(64), bytes(64)), *line_of(OLD, NEW))),
    ],
    ids=[
        "another's",
        "broken",
        "other network",
        "itself",
        "circle",
        "twice",
        "former unsigned",
        "heir unsigned",
        "no heir",
        "no key",
    ],
)
def test_a_false_line_is_blamed_and_changes_nothing(who: Signer, line: Line) -> None:
    one = heirs()
    assert is_blamed(say(one, who, line))
    assert list(one.coordinators) == [OLD.peer]
    assert one.heir(OLD.peer) == OLD.peer


def test_a_thief_needs_a_coordinators_certificate() -> None:
    """A stolen key signs for whoever has it; that one is a coordinator only if a registrar says so."""
    one = heirs(known=OLD)
    assert is_blamed(say(one, THIEF, line_of(OLD, THIEF), role="machine"))
    assert list(one.coordinators) == [OLD.peer]
    assert one.known_members()[0].peer == OLD.peer
    say(one, NEW, line_of(OLD, NEW))
    assert is_blamed(say(one, THIEF, line_of(NEW, THIEF), role="machine"))


def test_who_comes_second_displaces_nobody_but_a_chain_does() -> None:
    one = heirs()
    say(one, NEW, line_of(OLD, NEW))
    assert say(one, THIEF, line_of(OLD, THIEF)) == []
    assert say(one, OTHER, line_of(OLD, THIEF, OTHER)) == []
    assert list(one.coordinators) == [NEW.peer]

    fooled = heirs()
    say(fooled, THIEF, line_of(OLD, THIEF))
    assert notices(fooled.succeeded(OLD.peer, NEW.peer)) == [KeySucceeded(OLD.peer, NEW.peer)]
    assert list(fooled.coordinators) == [NEW.peer]
    assert say(fooled, THIEF, line_of(OLD, THIEF)) == []
    assert list(fooled.coordinators) == [NEW.peer]


def test_nobody_is_the_heir_of_a_key_that_was_revoked_before_it_was_followed() -> None:
    """Its owner had it revoked: whoever has stolen it, and is a coordinator elsewhere, gets nothing by it."""
    world = World()
    stolen, heir = heirs(), heirs()
    stolen.follow(world.state, (OLD.peer,))
    assert say(stolen, THIEF, line_of(OLD, THIEF)) == []
    assert list(stolen.coordinators) == [OLD.peer]
    heir.succeeded(OLD.peer, NEW.peer)
    heir.follow(world.state, (OLD.peer,))
    say(heir, NEXT, line_of(OLD, NEW, NEXT))
    assert list(heir.coordinators) == [NEXT.peer]


def test_a_chain_alone_is_believed_in_any_order() -> None:
    one = heirs()
    assert one.succeeded(NEW.peer, NEXT.peer) == [Notify(KeySucceeded(NEW.peer, NEXT.peer))]
    assert list(one.coordinators) == [OLD.peer]
    say(one, NEW, line_of(OLD, NEW))
    assert list(one.coordinators) == [NEW.peer, NEXT.peer], "it may not have adopted all its pools yet"
    assert one.succeeded(NEW.peer, NEXT.peer) == []
    say(one, NEXT, line_of(OLD, NEW, NEXT))
    assert list(one.coordinators) == [NEXT.peer]


def test_no_circle_comes_about() -> None:
    one = heirs()
    say(one, NEW, line_of(OLD, NEW))
    assert one.succeeded(NEW.peer, OLD.peer) == []
    assert list(one.coordinators) == [NEW.peer]
    assert say(one, OLD, line_of(NEW, OLD)) == []
    assert say(one, OLD, line_of(NEW, NEXT, OLD)) == []
    assert list(one.coordinators) == [NEW.peer]
    assert one.succeeded(OLD.peer, OLD.peer) == []


def test_a_peer_is_its_own_heir_whatever_others_say() -> None:
    """Its settings name the key that it had; whoever has its present key, too, says what it likes."""
    one = heirs(me=NEW, role="coordinator", line=line_of(OLD, NEW))
    assert list(one.coordinators) == [NEW.peer]
    assert one.peer_up(OTHER.peer) == [Send(OTHER.peer, Lineage(line_of(OLD, NEW)))]
    assert say(one, THIEF, line_of(NEW, THIEF)) == []
    assert say(one, THIEF, line_of(OLD, THIEF)) == []
    assert one.succeeded(NEW.peer, THIEF.peer) == []
    assert list(one.coordinators) == [NEW.peer]
    assert heirs().peer_up(OTHER.peer) == []


def test_one_line_is_said_on_a_link() -> None:
    one = heirs()
    say(one, OTHER, line_of(THIEF, OTHER))
    again = one.receive(Subject(OTHER.peer, "coordinator"), Lineage(line_of(OLD, OTHER)))
    assert is_blamed(again)
    assert list(one.coordinators) == [OLD.peer]
    one.peer_down(OTHER.peer)
    say(one, OTHER, line_of(OLD, OTHER))
    assert list(one.coordinators) == [OTHER.peer]


def test_a_known_peer_is_looked_for_under_its_present_key_where_it_was() -> None:
    one = heirs(known=OLD, coordinators=())
    effects = say(one, NEW, line_of(OLD, NEW), role="machine")
    (want,) = [effect for effect in effects if isinstance(effect, WantLink)]
    assert want.instead_of == OLD.peer
    assert (want.member.peer, want.member.name, want.member.addresses) == (
        NEW.peer,
        "cloud",
        (AT + NEW.peer,),
    )
    assert one.known_members() == (want.member,)


def test_keys_inside_an_address_are_read_as_their_heirs() -> None:
    behind = f"{AT}{OLD.peer}/p2p-circuit/p2p/{OTHER.peer}"
    one = heirs(known_peers=(KnownPeer(name="mill-2", address=behind),))
    say(one, NEW, line_of(OLD, NEW))
    say(one, THIEF, line_of(OTHER, THIEF), role="machine")
    assert one.of_address(behind) == f"{AT}{NEW.peer}/p2p-circuit/p2p/{THIEF.peer}"
    assert one.of_address("/dns4/p2p/tcp/1") == "/dns4/p2p/tcp/1"


def test_conduits_and_relays_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one = heirs(coordinators=(), conduits=(AT + OTHER.peer,))
    assert notices(say(one, THIEF, line_of(OTHER, THIEF), role="machine")) == [
        KeySucceeded(OTHER.peer, THIEF.peer)
    ]
    monkeypatch.setattr(table, "MAX_FOLLOWED", 1)
    assert say(one, NEW, line_of(THIEF, NEW), role="machine") == []
    assert one.heir(OTHER.peer) == THIEF.peer


def test_a_line_on_the_wire_is_bounded() -> None:
    line = line_of(*KEYS[: MAX_LINE + 1])
    assert decode_message(encode(Lineage(line))) == Lineage(line)
    too_long = encode(Lineage(line_of(*KEYS[: MAX_LINE + 2])))
    for frame in (too_long, encode(Lineage(()))):
        with pytest.raises(Exception, match="not a valid"):
            decode(Lineage, frame)


def test_a_former_key_of_which_a_chain_speaks_is_trusted_until_it_is_revoked() -> None:
    """Else nobody would believe a pool that the new key has not adopted yet."""
    world = World()
    one = heirs(coordinators=(world.coordinator.peer,))
    new = world.newcomer("new key")
    world.pack(world.record(world.coordinator, world.new_key(world.coordinator, new)))
    assert notices(one.follow(world.state, ())) == [KeySucceeded(world.coordinator.peer, new.peer)]
    assert list(one.coordinators) == [world.coordinator.peer, new.peer]
    assert one.follow(world.state, (world.coordinator.peer,)) == []
    assert list(one.coordinators) == [new.peer]


def test_a_node_says_its_line_first_and_follows_that_of_others() -> None:
    """A coordinator under its next key is dialled where it was, and hears where this peer is."""
    now, source = Instant(1, 1_700_000_000_000), MemoryStore()
    known = (KnownPeer(name="cloud", address=AT + OLD.peer),)
    mill = PeerSettings(name="mill", network=NETWORK, coordinators=(OLD.peer,), known_peers=known)
    cloud = PeerSettings(name="cloud", network=NETWORK, role="coordinator")
    member, coordinator = Node(mill, ME, source), Node(cloud, NEW, source, line_of(OLD, NEW))
    member.rendezvous.addresses = ("/ip4/10.0.0.9/tcp/4001",)

    said = [one for one in coordinator.step(PeerUp(Subject(ME.peer)), now) if isinstance(one, Send)]
    assert [type(one.message) for one in said] == [Lineage, Hello]
    first = member.step(PeerUp(Subject(NEW.peer, "coordinator")), now)
    assert [type(one.message) for one in first if isinstance(one, Send)] == [Hello]
    effects = member.step(Received(NEW.peer, said[0].message), now)
    assert Notify(KeySucceeded(OLD.peer, NEW.peer)) in effects
    (told,) = [one for one in effects if isinstance(one, Send)]
    assert (told.peer, type(told.message)) == (NEW.peer, Reachable)
    assert [one.instead_of for one in effects if isinstance(one, WantLink)] == [OLD.peer]
    # The pools that it forms are believed from now on.
    assert not member.pools._former_problem(NEW.peer)
    assert member.pools._former_problem(OLD.peer)

"""Finding data across pools (Algorithm 2), ranking its holders, confirming a transfer."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec
import pytest

from edgepool.core.machine import (
    AccessRefused,
    Confirmed,
    ConfirmTransfer,
    Done,
    Failed,
    FindData,
    Instant,
    Misbehaved,
    Notify,
    RankedOffer,
    Send,
    WantLink,
)
from edgepool.core.resolution.confirmation import Output
from edgepool.core.resolution.ranking import rank
from edgepool.core.resolution.resolver import Countersigned, Resolver
from edgepool.core.rights import Subject
from edgepool.model.block import Handover, Header
from edgepool.model.codec import encode
from edgepool.model.crypto import Signer, sha256
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.message import (
    ConfirmAnswer,
    ConfirmRequest,
    LoadQuery,
    LoadReport,
    OfferProof,
    Query,
    QueryAnswer,
    decode_message,
)
from edgepool.model.pool import Genesis, Invitation, Member, accept, sign_invitation
from edgepool.model.record import DataOffer, SignedRecord, TransmissionConfirmation, sign_record
from edgepool.model.twin import DataKey
from edgepool.model.vote import Certificate

NETWORK = "works"
KEY = DataKey("PTVA10212-03", "model")
START_MS = 1_700_000_000_000
SIGNERS = {name: Signer(sha256(name.encode())) for name in "abcdefghijk"}
PEER = {name: signer.peer for name, signer in SIGNERS.items()}
NAME = {peer: name for name, peer in PEER.items()}
LIAR_ROOT = sha256(b"a lie")


def at(ms: int) -> Instant:
    return Instant(ms, START_MS + ms)


def person(name: str) -> Member:
    return Member(PEER[name], name, "Milling", (f"/dns4/{name}/tcp/4001",))


def chain_id(name: str) -> ChainId:
    return ChainId(sha256(name.encode()).hex()[:40])


def root_of(holder: str, version: int = 1) -> bytes:
    return sha256(f"{holder} {version}".encode())


def offer(holder: str, version: int = 1, key: DataKey = KEY, root: bytes = b"") -> OfferProof:
    """An offer with a proof in the right shape; what is true of it is for `check_proof` to say."""
    signer = SIGNERS[holder]
    invitation = Invitation(NETWORK, "pool", "fixed", signer.peer, (person(holder),), (), (), 0, 0)
    acceptance = accept(signer, invitation, bytes(32))
    genesis = Genesis(invitation, sign_invitation(signer, invitation), (acceptance,))
    body = DataOffer(key, version, root or root_of(holder, version), 1000, "", 4)
    header = Header(NETWORK, genesis.chain, 1, 0, *(bytes(32),) * 5, 1, signer.peer, b"", 0)
    certificate = Certificate(1, 0, header.id, ((0, bytes(64)),))
    record = sign_record(signer, NETWORK, genesis.chain, body, START_MS, 0)
    return OfferProof(genesis, (), header, certificate, record, 0, ())


def check_proof(proof: OfferProof) -> str:
    body = proof.record.record.body
    assert isinstance(body, DataOffer)
    return "the certificate does not hold" if body.root == LIAR_ROOT else ""


@dataclass
class FakeDirectory:
    """What one peer knows; the tests write it down."""

    main: tuple[str, ...] = ()
    sub: tuple[str, ...] = ()
    people: dict[str, str] = field(default_factory=dict)
    on_chain: dict[str, list[OfferProof]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    held: dict[bytes, int] = field(default_factory=dict)
    busy: tuple[int, int] = (10, 20)
    shared: str = "F1"
    looked_at: list[str] = field(default_factory=list)

    def main_chains(self) -> tuple[ChainId, ...]:
        return tuple(chain_id(name) for name in self.main)

    def sub_chains(self) -> tuple[ChainId, ...]:
        return tuple(chain_id(name) for name in self.sub)

    def offers(
        self, chain: ChainId, key: DataKey, version: int, *, outward: bool = False
    ) -> tuple[OfferProof, ...]:
        name = next(name for name in (*self.main, *self.sub) if chain_id(name) == chain)
        self.looked_at.append(name)
        fitting = [
            (body.version, proof)
            for proof in self.on_chain.get(name, [])
            if isinstance(body := proof.record.record.body, DataOffer) and body.key == key
        ]
        wanted = version or max((number for number, _ in fitting), default=0)
        return tuple(proof for number, proof in fitting if number == wanted)

    def height(self, chain: ChainId) -> int:
        return 7

    def neighbours(self, chain: ChainId) -> tuple[PeerId, ...]:
        name = next(name for name in (*self.main, *self.sub) if chain_id(name) == chain)
        return tuple(PEER[other] for other in self.people.get(name, "") if other in self.links)

    def member(self, peer: PeerId) -> Member | None:
        return person(NAME[peer])

    def connected(self, peer: PeerId) -> bool:
        return NAME[peer] in self.links

    def holds(self, root: bytes) -> bool:
        return root in self.held

    def size_bytes(self, root: bytes) -> int:
        return self.held[root]

    def load(self) -> tuple[int, int]:
        return self.busy

    def subject(self, peer: PeerId) -> Subject:
        return Subject(peer)

    def policy(self, chain: ChainId, key: DataKey, root: bytes) -> OfferProof | None:
        return None

    def admit(
        self, requester: PeerId, key: DataKey, root: bytes, purpose: str, now_ms: int
    ) -> tuple[ChainId | None, str]:
        return (chain_id(self.shared), "") if self.shared else (None, "it is not for c")


def resolver(name: str, directory: FakeDirectory, limit: int = 16) -> Resolver:
    return Resolver(
        signer=SIGNERS[name],
        network=NETWORK,
        directory=directory,
        check_proof=check_proof,
        check_policy=check_proof,
        limit=limit,
    )


class Workshop:
    """Peers in pools; everybody in a pool is linked; messages go through the codec."""

    def __init__(self, main: dict[str, str], sub: dict[str, str] | None = None, silent: str = "") -> None:
        sub = sub or {}
        self.silent = silent
        self.directories: dict[str, FakeDirectory] = {}
        self.rooms: dict[str, Resolver] = {}
        self.log: list[tuple[str, object]] = []
        self.sent: list[tuple[str, str, object]] = []
        self.queue: deque[tuple[str, str, bytes]] = deque()
        self.ms = 0
        both = {**main, **sub}
        for name in sorted(set("".join(both.values()))):
            own = {chain: people for chain, people in both.items() if name in people}
            links = sorted(set("".join(own.values())) - {name})
            self.directories[name] = FakeDirectory(
                main=tuple(chain for chain in own if chain in main),
                sub=tuple(chain for chain in own if chain in sub),
                people={chain: people.replace(name, "") for chain, people in own.items()},
                links=links,
            )
            self.rooms[name] = resolver(name, self.directories[name])

    def publish(self, chain: str, *proofs: OfferProof) -> None:
        """Put offers on a chain; their holders hold what they offer."""
        for name, directory in self.directories.items():
            if chain in (*directory.main, *directory.sub):
                directory.on_chain.setdefault(chain, []).extend(proofs)
            for proof in proofs:
                body = proof.record.record.body
                assert isinstance(body, DataOffer)
                if PEER[name] == proof.record.record.author:
                    directory.held[body.root] = body.size_bytes

    def link(self, one: str, other: str) -> None:
        for here, there in ((one, other), (other, one)):
            if there not in self.directories[here].links:
                self.directories[here].links.append(there)
                self.perform(here, self.rooms[here].peer_up(PEER[there], at(self.ms)))

    def perform(self, name: str, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Send(peer, message):
                    self.sent.append((name, NAME[peer], message))
                    self.queue.append((name, NAME[peer], encode(message)))
                case WantLink(member):
                    if NAME[member.peer] not in self.silent:
                        self.link(name, NAME[member.peer])
                case _:
                    self.log.append((name, output))

    def run(self) -> None:
        while self.queue:
            sender, receiver, frame = self.queue.popleft()
            if receiver in self.silent or receiver not in self.directories[sender].links:
                continue
            message = decode_message(frame)
            assert isinstance(
                message, Query | QueryAnswer | LoadQuery | LoadReport | ConfirmRequest | ConfirmAnswer
            )
            room = self.rooms[receiver]
            self.perform(receiver, room.receive(PEER[sender], message, at(self.ms)))

    def find(self, name: str, version: int = 0, budget_ms: int = 4_000) -> list[str] | None:
        """Return the holders that `name` finds, best first; None if the search still runs."""
        self.perform(name, self.rooms[name].find(1, FindData(KEY, version, budget_ms), at(self.ms)))
        self.run()
        return self.result()

    def result(self) -> list[str] | None:
        done = [o.notice.result for _, o in self.log if isinstance(o, Notify) and isinstance(o.notice, Done)]
        if not done:
            return None
        assert isinstance(done[-1], tuple)
        return [NAME[ranked.holder.peer] for ranked in done[-1]]

    def wake_all(self, ms: int) -> None:
        self.ms = ms
        for name, room in self.rooms.items():
            if room.deadline is not None and room.deadline <= ms and name not in self.silent:
                self.perform(name, room.wake(at(ms)))
        self.run()

    def misbehaved(self) -> list[str]:
        notices = [o.notice for _, o in self.log if isinstance(o, Notify)]
        return [NAME[notice.peer] for notice in notices if isinstance(notice, Misbehaved)]


# --- Algorithm 2 --------------------------------------------------------------------------------


def test_own_chains_come_first_main_before_sub_and_nobody_is_asked_then() -> None:
    shop = Workshop({"F1": "ab"}, {"M1": "ac"})
    shop.publish("F1", offer("b"))
    shop.publish("M1", offer("c"))
    assert sorted(shop.find("a") or []) == ["b", "c"]
    assert shop.directories["a"].looked_at == ["F1", "M1"]
    assert not any(isinstance(message, Query) for _, _, message in shop.sent)


def test_members_of_the_own_pools_are_asked_and_look_in_their_other_chains() -> None:
    shop = Workshop({"F1": "ab", "F2": "cd"}, {"M1": "bc"})
    shop.publish("M1", offer("c"))
    assert shop.find("a") == ["c"]
    assert shop.directories["b"].looked_at == ["M1"]
    assert shop.directories["c"].looked_at == []


def test_the_search_goes_outward_pool_by_pool() -> None:
    shop = Workshop({"F1": "ab", "F2": "bc", "F3": "cd", "F4": "de"})
    shop.publish("F4", offer("e"))
    assert shop.find("a") == ["e"]
    hops = [(s, r, m.hops_left) for s, r, m in shop.sent if isinstance(m, Query)]
    assert hops == [("a", "b", 3), ("b", "c", 2), ("c", "d", 1)]


def test_the_search_ends_where_the_hops_end() -> None:
    for chain, holder, found in (("F5", "f", ["f"]), ("F6", "g", [])):
        shop = Workshop({"F1": "ab", "F2": "bc", "F3": "cd", "F4": "de", "F5": "ef", "F6": "fg"})
        shop.publish(chain, offer(holder))
        assert shop.find("a") == found


def test_a_near_pool_hides_a_far_one() -> None:
    shop = Workshop({"F1": "ab", "F2": "bc", "F3": "cd"})
    shop.publish("F2", offer("c"))
    shop.publish("F3", offer("d"))
    assert shop.find("a") == ["c"]


def test_holders_of_all_directions_are_gathered_once_each() -> None:
    shop = Workshop({"F1": "abc", "F2": "bd", "F3": "cde"})
    shop.publish("F2", offer("d"))
    shop.publish("F3", offer("d"), offer("e"))
    assert sorted(shop.find("a") or []) == ["d", "e"]


def test_only_the_newest_version_survives_unless_one_is_asked_for() -> None:
    for version, holders in ((0, ["e"]), (1, ["d"])):
        shop = Workshop({"F1": "abc", "F2": "bd", "F3": "ce"})
        shop.publish("F2", offer("d", 1))
        shop.publish("F3", offer("e", 2))
        assert shop.find("a", version) == holders


def test_nobody_has_it_and_everybody_says_so_at_once() -> None:
    shop = Workshop({"F1": "abc", "F2": "bcd", "F3": "ad"}, {"M1": "abcd"})
    assert shop.find("a") == []
    assert all(room.deadline is None for room in shop.rooms.values())


def test_a_search_in_a_ring_of_pools_ends_and_asks_nobody_on_twice() -> None:
    shop = Workshop({"F1": "abc", "F2": "bcd", "F3": "cda", "F4": "dab"}, {"M1": "bd", "M2": "ce"})
    assert shop.find("a") == []
    asked_on = [(s, r) for s, r, m in shop.sent if isinstance(m, Query)]
    assert len(asked_on) == len(set(asked_on))
    for name, directory in shop.directories.items():
        assert len(directory.looked_at) <= 2 * len(directory.main + directory.sub), name


def test_silent_peers_cost_only_their_share_of_the_budget() -> None:
    shop = Workshop({"F1": "abc", "F2": "bd", "F3": "ce"}, silent="d")
    shop.publish("F3", offer("e"))
    assert shop.find("a", budget_ms=4_000) is None
    b_answers_ms, a_ends_ms = shop.rooms["b"].deadline, shop.rooms["a"].deadline
    assert b_answers_ms is not None
    assert a_ends_ms is not None
    assert b_answers_ms < a_ends_ms < 4_000
    shop.wake_all(b_answers_ms)
    assert shop.result() == ["e"]


def test_a_lost_link_is_not_waited_for() -> None:
    shop = Workshop({"F1": "ab"}, silent="b")
    assert shop.find("a") is None
    shop.perform("a", shop.rooms["a"].peer_down(PEER["b"], at(5)))
    assert shop.result() == []


def test_a_false_proof_is_dropped_and_its_sender_named() -> None:
    shop = Workshop({"F1": "ab", "F2": "bc"})
    shop.publish("F2", offer("b", root=LIAR_ROOT), offer("c"))
    assert shop.find("a") == ["c"]
    assert shop.misbehaved() == ["b"]


def test_whoever_passes_an_offer_on_has_checked_it() -> None:
    shop = Workshop({"F1": "ab", "F2": "bc", "F3": "cd"})
    shop.publish("F3", offer("d", root=LIAR_ROOT))
    assert shop.find("a") == []
    assert shop.misbehaved() == ["c"]


def test_an_offer_of_other_data_is_no_answer() -> None:
    directory = FakeDirectory(main=("F1",), people={"F1": "b"}, links=["b"])
    room = resolver("a", directory)
    (send,) = room.find(1, FindData(KEY, 0, 1_000), at(0))
    assert isinstance(send, Send)
    assert isinstance(send.message, Query)
    other = offer("b", key=DataKey("PTVA10212-03", "error"))
    outputs = room.receive(PEER["b"], QueryAnswer(send.message.query, (other,), ()), at(1))
    notices = [output.notice for output in outputs if isinstance(output, Notify)]
    assert isinstance(notices[0], Misbehaved)
    assert notices[1:] == [Done(1, ())]


def test_an_answer_that_nobody_waits_for_counts_for_nothing() -> None:
    directory = FakeDirectory(main=("F1",), people={"F1": "b"}, links=["b", "c"])
    room = resolver("a", directory)
    (send,) = room.find(1, FindData(KEY, 0, 1_000), at(0))
    assert isinstance(send, Send)
    assert isinstance(send.message, Query)
    number = send.message.query
    assert room.receive(PEER["c"], QueryAnswer(number, (offer("c"),), ()), at(1)) == []
    assert room.receive(PEER["b"], QueryAnswer(number + 1, (offer("b"),), ()), at(1)) == []


def test_the_same_question_is_answered_once() -> None:
    room = resolver("a", FakeDirectory())
    question = Query(5, KEY, 0, 3, 1_000, ())
    assert room.receive(PEER["b"], question, at(0)) == [Send(PEER["b"], QueryAnswer(5, (), ()))]
    assert room.receive(PEER["b"], question, at(1)) == []


def test_one_peer_cannot_take_all_room_for_searches() -> None:
    directory = FakeDirectory(main=("F1",), people={"F1": "bc"}, links=["b", "c"])
    room = resolver("a", directory, limit=8)
    kinds = []
    for number in (1, 2):
        (output,) = room.receive(PEER["b"], Query(number, KEY, 0, 3, 60_000, ()), at(0))
        assert isinstance(output, Send)
        kinds.append((NAME[output.peer], type(output.message)))
    assert kinds == [("c", Query), ("b", QueryAnswer)]


def test_own_searches_are_bounded_and_the_oldest_gives_way() -> None:
    directory = FakeDirectory(main=("F1",), people={"F1": "b"}, links=["b"])
    room = resolver("a", directory, limit=2)
    outputs = [room.find(ticket, FindData(KEY, 0, 1_000), at(0)) for ticket in (1, 2, 3)]
    notices = [output.notice for each in outputs for output in each if isinstance(output, Notify)]
    assert [(notice.ticket, notice.refused) for notice in notices if isinstance(notice, Failed)] == [
        (1, False)
    ]


# --- ranking ------------------------------------------------------------------------------------


def test_holders_are_ranked_by_network_load_then_processing_load() -> None:
    shop = Workshop({"F1": "abcd"})
    shop.publish("F1", offer("b"), offer("c"), offer("d"))
    shop.directories["b"].busy = (60, 0)
    shop.directories["c"].busy = (5, 90)
    shop.directories["d"].busy = (5, 10)
    assert shop.find("a") == ["d", "c", "b"]


def test_equal_loads_are_ranked_by_round_trip_then_peer() -> None:
    def ranked(name: str, round_trip_ms: int, reachable: bool = True) -> RankedOffer:
        return RankedOffer(offer(name), person(name), 5, 5, round_trip_ms, reachable)

    first, second = sorted(("c", "d"), key=lambda name: PEER[name])
    offers = [ranked("e", 0, reachable=False), ranked("b", 9), ranked(second, 3), ranked(first, 3)]
    assert [one.holder.name for one in rank(offers)] == [first, second, "b", "e"]


def test_the_round_trip_is_measured() -> None:
    directory = FakeDirectory(main=("F1",), links=["b"], on_chain={"F1": [offer("b")]})
    room = resolver("a", directory)
    (send,) = room.find(1, FindData(KEY, 0, 1_000), at(0))
    assert isinstance(send, Send)
    assert isinstance(send.message, LoadQuery)
    report = LoadReport(send.message.query, root_of("b"), True, 3, 4, "")
    (notify,) = room.receive(PEER["b"], report, at(17))
    expected = RankedOffer(offer("b"), person("b"), 3, 4, 17, True)
    assert notify == Notify(Done(1, (expected,)))


def test_a_holder_without_a_link_is_dialled_and_then_asked() -> None:
    shop = Workshop({"F1": "ab", "F2": "bc"})
    shop.publish("F2", offer("c"))
    assert shop.find("a") == ["c"]
    assert "c" in shop.directories["a"].links


def test_a_holder_who_came_to_its_pool_later_is_dialled_where_it_was_admitted() -> None:
    """This peer knows nobody of that pool; the proof's handovers say where the newcomer listens."""

    class Stranger(FakeDirectory):
        def member(self, peer: PeerId) -> Member | None:
            return None

    proof = offer("b")
    moved = msgspec.structs.replace(person("b"), addresses=("/dns4/b/tcp/4002",))
    handover = Handover(proof.header, proof.certificate, PeerId(""), moved)
    for handovers, addresses in (((), person("b").addresses), ((handover,), moved.addresses)):
        found = msgspec.structs.replace(proof, handovers=handovers)
        directory = Stranger(main=("F1",), people={"F1": "b"}, on_chain={"F1": [found]})
        effects = resolver("a", directory).find(1, FindData(KEY, 0, 5_000), at(0))
        (want,) = (effect for effect in effects if isinstance(effect, WantLink))
        assert want.member.addresses == addresses


def test_a_holder_that_no_longer_has_the_data_is_left_out() -> None:
    shop = Workshop({"F1": "abc"})
    shop.publish("F1", offer("b"), offer("c"))
    shop.directories["b"].held.clear()
    assert shop.find("a") == ["c"]


def test_a_holder_that_does_not_answer_comes_last_as_not_reachable() -> None:
    shop = Workshop({"F1": "abc"}, silent="b")
    shop.publish("F1", offer("b"), offer("c"))
    assert shop.find("a") is None
    deadline = shop.rooms["a"].deadline
    assert deadline == 1_000
    shop.wake_all(deadline)
    assert shop.result() == ["c", "b"]
    (_, notify) = shop.log[-1]
    assert isinstance(notify, Notify)
    assert isinstance(notify.notice, Done)
    assert [ranked.reachable for ranked in notify.notice.result] == [True, False]  # type: ignore[attr-defined]


def test_no_more_than_eight_holders_are_asked_and_the_others_come_last() -> None:
    shop = Workshop({"F1": "abcdefghijk"})
    shop.publish("F1", *(offer(name) for name in "bcdefghijk"))
    found = shop.find("a")
    assert [receiver for _, receiver, message in shop.sent if isinstance(message, LoadQuery)] == list(
        "bcdefghi"
    )
    assert found is not None
    assert sorted(found[8:]) == ["j", "k"]


def test_what_this_peer_holds_itself_needs_no_question() -> None:
    shop = Workshop({"F1": "ab"})
    shop.publish("F1", offer("a"))
    assert shop.find("a") == ["a"]
    assert shop.sent == []


# --- confirmation -------------------------------------------------------------------------------


def order(holder: str = "b", valid_ms: int = 60_000) -> ConfirmTransfer:
    return ConfirmTransfer(person(holder), KEY, root_of("b"), START_MS + valid_ms)


def outcome(shop: Workshop, name: str = "a") -> Done | Failed:
    notices = [o.notice for who, o in shop.log if who == name and isinstance(o, Notify)]
    (notice,) = [notice for notice in notices if isinstance(notice, Done | Failed)]
    return notice


def holder_and_requester(linked: bool = True) -> Workshop:
    shop = Workshop({"F1": "ab"} if linked else {"F1": "ac", "F2": "bc"})
    shop.directories["b"].held[root_of("b")] = 1_234
    return shop


@pytest.mark.parametrize("linked", [True, False])
def test_both_sides_sign_and_the_record_goes_on_the_shared_chain(linked: bool) -> None:
    shop = holder_and_requester(linked)
    shop.perform("a", shop.rooms["a"].confirm(4, order(), at(0)))
    shop.run()
    done = outcome(shop)
    assert isinstance(done, Done)
    record = done.result
    assert isinstance(record, SignedRecord)
    assert record.authentic()
    assert (record.record.author, record.record.chain) == (PEER["b"], chain_id("F1"))
    body = record.record.body
    assert isinstance(body, TransmissionConfirmation)
    assert (body.requester, body.size_bytes, body.valid_until_ms) == (PEER["a"], 1_234, START_MS + 60_000)
    assert ("b", Countersigned(record)) in shop.log
    assert ("b", Notify(Confirmed(body))) in shop.log


def test_asking_twice_for_the_same_terms_makes_one_record() -> None:
    shop = holder_and_requester()
    for ticket in (1, 2):
        shop.perform("a", shop.rooms["a"].confirm(ticket, order(), at(ticket)))
        shop.run()
    assert sum(isinstance(output, Countersigned) for _, output in shop.log) == 1
    assert sum(isinstance(o, Notify) and isinstance(o.notice, Done) for _, o in shop.log) == 2


@pytest.mark.parametrize(
    ("change", "valid_ms", "reason"),
    [
        ("not held", 60_000, "does not hold this data"),
        ("not shared", 60_000, "it is not for c"),
        ("", 0, "expired by the holder's clock"),
        ("", 601_000, "valid for more than 10 minutes by the holder's clock"),
    ],
)
def test_a_holder_refuses_and_names_the_condition(change: str, valid_ms: int, reason: str) -> None:
    shop = holder_and_requester()
    if change == "not held":
        shop.directories["b"].held.clear()
    if change == "not shared":
        shop.directories["b"].shared = ""
    shop.perform("a", shop.rooms["a"].confirm(4, order(valid_ms=valid_ms), at(0)))
    shop.run()
    assert outcome(shop) == Failed(4, f"refused by b: {reason}", refused=True)
    assert not any(isinstance(output, Countersigned) for _, output in shop.log)


def test_a_request_in_anothers_name_or_with_changed_terms_is_refused() -> None:
    shop = holder_and_requester()
    (send,) = shop.rooms["a"].confirm(4, order(), at(0))
    assert isinstance(send, Send)
    request = send.message
    assert isinstance(request, ConfirmRequest)
    stretched = msgspec.structs.replace(request, valid_until_ms=request.valid_until_ms + 1)
    for sender, message, refusal in (
        ("c", request, "requester is not the sender"),
        ("a", stretched, "the requester's signature does not hold"),
    ):
        outputs = shop.rooms["b"].receive(PEER[sender], message, at(0))
        answer = ConfirmAnswer(request.query, request.root, None, refusal, None)
        told = AccessRefused(Subject(PEER[sender]), request.key, request.root, "", refusal)
        assert outputs == [Send(PEER[sender], answer), Notify(told)]


def test_a_requester_believes_only_the_holders_record_of_its_own_terms() -> None:
    shop = holder_and_requester()
    shop.perform("a", shop.rooms["a"].confirm(4, order(), at(0)))
    shop.run()
    done = outcome(shop)
    assert isinstance(done, Done)
    assert isinstance(done.result, SignedRecord)
    body = done.result.record.body
    assert isinstance(body, TransmissionConfirmation)
    good = done.result.record

    longer = msgspec.structs.replace(body, valid_until_ms=body.valid_until_ms + 1)
    chain = chain_id("F1")
    false_records = [
        (sign_record(SIGNERS["c"], NETWORK, chain, body, START_MS, 0), "not the holder's record"),
        (sign_record(SIGNERS["b"], "other", chain, body, START_MS, 0), "for network 'other'"),
        (sign_record(SIGNERS["b"], NETWORK, chain, longer, START_MS, 0), "terms are not those"),
        (SignedRecord(good, bytes(64)), "signature does not hold"),
        (offer("b").record, "another kind of record"),
    ]
    for record, reason in false_records:
        room = resolver("a", shop.directories["a"])
        (send,) = room.confirm(5, order(), at(0))
        assert isinstance(send, Send)
        assert isinstance(send.message, ConfirmRequest)
        answer = ConfirmAnswer(send.message.query, root_of("b"), record, "", None)
        assert room.receive(PEER["c"], answer, at(1)) == []
        misbehaved, failed = room.receive(PEER["b"], answer, at(1))
        assert isinstance(misbehaved, Notify)
        assert isinstance(misbehaved.notice, Misbehaved)
        assert isinstance(failed, Notify)
        assert isinstance(failed.notice, Failed)
        assert reason in failed.notice.reason


def test_a_holder_that_is_silent_unreachable_or_lost_fails_the_confirmation() -> None:
    def started(links: list[str]) -> Resolver:
        room = resolver("a", FakeDirectory(links=links))
        room.confirm(4, order(), at(0))
        assert room.deadline == 5_000
        return room

    silent = started(["b"]).wake(at(5_000))
    assert silent == [Notify(Failed(4, "b did not confirm within 5 s", refused=False))]
    unreachable = started([]).wake(at(5_000))
    assert unreachable == [Notify(Failed(4, "b could not be reached within 5 s", refused=False))]
    lost = started(["b"]).peer_down(PEER["b"], at(1))
    assert lost == [Notify(Failed(4, "the link to b was lost before it confirmed", refused=False))]


def test_nobody_confirms_a_transfer_to_itself() -> None:
    outputs = resolver("b", FakeDirectory()).confirm(4, order("b"), at(0))
    assert outputs == [Notify(Failed(4, "this peer holds the data itself", refused=True))]


def test_numbers_of_requests_differ_between_peers_and_runs_and_fit_53_bits() -> None:
    numbers = []
    for name, ms in (("a", 0), ("a", 1), ("b", 0)):
        room = resolver(name, FakeDirectory(links=["c"]))
        for ticket in (1, 2):
            (send,) = room.confirm(ticket, order("c"), at(ms))
            assert isinstance(send, Send)
            assert isinstance(send.message, ConfirmRequest)
            numbers.append(send.message.query)
    assert len(set(numbers)) == len(numbers)
    assert max(numbers) < 2**53

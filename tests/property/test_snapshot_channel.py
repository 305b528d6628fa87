"""Snapshots over links that lose, double, delay and cut: whoever is behind comes to the certified state.

Two honest peers, one that sends false pages and one that never answers; the plan of each example says what
the network does, and then it is quiet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_pool import A, B, C, D, SnapshotPool, Store, state_bytes

from edgepool.core.adoption import Adopted, Output
from edgepool.core.machine import Effect, Misbehaved, Notify, Send
from edgepool.core.snapshots import SnapshotServer
from edgepool.model.crypto import sha256
from edgepool.model.ids import PeerId
from edgepool.model.message import Message, SnapshotHead, SnapshotPage, SnapshotRequest

PAGE_BYTES = 64
SIZE_BYTES = 5 * PAGE_BYTES + 8
HEIGHTS = (8, 12, 16)
POOL = SnapshotPool(blocks=20)
HONEST, LIAR, SILENT = (A, B), C, D
ALL = (*HONEST, LIAR, SILENT)

Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["deliver", "deliver", "deliver", "copy", "drop", "wait", "wait", "cut", "newer", "block"]
        ),
        st.integers(0, 1_000),
    ),
    max_size=150,
)


@contextmanager
def small_pages() -> Iterator[None]:
    """Cut snapshots into pages of PAGE_BYTES."""
    with (
        patch("edgepool.core.snapshots.SNAPSHOT_PAGE_BYTES", PAGE_BYTES),
        patch("edgepool.core.adoption.SNAPSHOT_PAGE_BYTES", PAGE_BYTES),
    ):
        yield


class Rig:
    """A fetcher, four servers, and the messages between them that are on their way."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.own_height = 0
        self.fetcher = POOL.fetcher()
        self.stores: dict[PeerId, Store] = {peer: POOL.store(HEIGHTS[0], SIZE_BYTES) for peer in ALL}
        self.servers = {peer: SnapshotServer(self.stores[peer], POOL.chain) for peer in ALL}
        self.under_way: list[tuple[PeerId, Message]] = []
        self.adopted: list[Adopted] = []
        self.blamed: list[PeerId] = []

    def step(self, what: str, number: int) -> None:
        place = number % len(self.under_way) if self.under_way else None
        peer = ALL[number % len(ALL)]
        if what == "wait":
            self.wait(10 * number)
        elif what == "cut":
            self.under_way = [one for one in self.under_way if one[0] != peer]
            self.take(self.fetcher.peer_down(peer, self.now_ms))
            self.servers[peer].forget(peer)
        elif what == "newer":
            self.replace(peer)
        elif what == "block":
            self.own_height = min(self.own_height + 1, 5)
            self.fetcher.advanced(self.own_height, self.now_ms)
        elif place is not None and what == "copy":
            self.deliver(*self.under_way[place])
        elif place is not None:
            message = self.under_way.pop(place)
            if what == "deliver":
                self.deliver(*message)

    def replace(self, peer: PeerId) -> None:
        saved = self.stores[peer].saved
        assert saved is not None
        newer = POOL.store(HEIGHTS[min(HEIGHTS.index(saved.height) + 1, len(HEIGHTS) - 1)], SIZE_BYTES)
        self.stores[peer].blocks, self.stores[peer].saved = newer.blocks, newer.saved

    def wait(self, pause_ms: int) -> None:
        """Let time pass; the servers hear now and then that this peer is behind."""
        self.now_ms += pause_ms
        for peer, server in self.servers.items():
            self.send(peer, server.offer(peer, self.own_height + 1, self.now_ms))
            if server.deadline is not None and server.deadline <= self.now_ms:
                server.wake(self.now_ms)
        if self.fetcher.deadline is not None and self.fetcher.deadline <= self.now_ms:
            self.take(self.fetcher.wake(self.now_ms))
        assert self.fetcher.deadline is None or self.fetcher.deadline > self.now_ms

    def deliver(self, peer: PeerId, message: Message) -> None:
        if self.adopted:
            return
        if isinstance(message, SnapshotRequest):
            if peer != SILENT:
                self.send(peer, self.servers[peer].page(peer, message, self.now_ms))
        elif isinstance(message, SnapshotHead):
            known = tuple(one for one in POOL.handovers if one.header.height <= self.own_height)
            self.take(self.fetcher.head(peer, message, self.own_height, known, self.now_ms))
        elif isinstance(message, SnapshotPage):
            self.take(self.fetcher.page(peer, message, self.now_ms))

    def send(self, peer: PeerId, effects: list[Effect]) -> None:
        """Put what the server of `peer` sends on its way; the liar's pages are false."""
        for effect in effects:
            assert isinstance(effect, Send)
            message = effect.message
            if peer == LIAR and isinstance(message, SnapshotPage):
                message = SnapshotPage(message.chain, message.height, message.page, bytes(len(message.data)))
            self.under_way.append((peer, message))

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, Send):
                self.under_way.append((output.peer, output.message))
            elif isinstance(output, Notify):
                assert isinstance(output.notice, Misbehaved)
                self.blamed.append(output.notice.peer)
            else:
                assert isinstance(output, Adopted)
                self.adopted.append(output)


@settings(max_examples=150, deadline=None)
@given(plan=STEPS)
def test_who_is_behind_comes_to_the_certified_state_whatever_the_network_did(plan: list[Step]) -> None:
    with small_pages():
        rig = Rig()
        for what, number in plan:
            rig.step(what, number)
        while not rig.adopted and rig.now_ms < 3_600_000:  # the network is quiet now
            while rig.under_way:
                rig.deliver(*rig.under_way.pop(0))
            rig.wait(500)
    assert set(rig.blamed) <= {LIAR}
    [adopted] = rig.adopted
    assert adopted.data == state_bytes(adopted.height, SIZE_BYTES)
    assert adopted.state.root == sha256(b"state %d" % adopted.height)
    assert adopted.state.root == POOL.blocks[adopted.height].block.header.state_root
    assert adopted.height in HEIGHTS
    assert rig.fetcher.deadline is None


@settings(max_examples=40, deadline=None)
@given(plan=STEPS)
def test_among_liars_and_the_silent_nothing_is_ever_adopted(plan: list[Step]) -> None:
    with small_pages():
        rig = Rig()
        for honest in HONEST:
            del rig.servers[honest]
        for what, number in plan:
            if what != "cut" or ALL[number % len(ALL)] not in HONEST:
                rig.step(what, number)
        for _ in range(1_000):
            while rig.under_way:
                rig.deliver(*rig.under_way.pop(0))
            rig.wait(500)
    assert rig.adopted == []
    assert set(rig.blamed) <= {LIAR}


@settings(max_examples=60, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, SIZE_BYTES - 1), st.integers(1, 255)), max_size=3),
    cut_bytes=st.integers(0, 2),
)
def test_only_the_very_bytes_are_adopted(flips: list[tuple[int, int]], cut_bytes: int) -> None:
    data = bytearray(state_bytes(8, SIZE_BYTES))
    for place, change in flips:
        data[place] ^= change
    served = bytes(data[: len(data) - cut_bytes])
    with small_pages():
        fetcher = POOL.fetcher()
        fetcher.head(A, POOL.head(8, size_bytes=SIZE_BYTES), 0, (), 0)
        outputs = fetcher.wake(2_000)
        for number in range(6):
            page = served[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            outputs = fetcher.page(A, SnapshotPage(POOL.chain, 8, number, page), 2_000)
    adopted = [one for one in outputs if isinstance(one, Adopted)]
    assert bool(adopted) == (served == state_bytes(8, SIZE_BYTES))

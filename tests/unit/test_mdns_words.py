"""Multicast DNS as libp2p speaks it: what is said can be read, and nothing that is heard does harm."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepool.model.crypto import Signer
from edgepool.model.ids import PeerId
from edgepool.transport.libp2p_child.mdnswords import MAX_FOUND, Heard, NoDns, answer, question, read
from edgepool.transport.nearby import MAX_PEERS, MAX_PLACES, Nearby

ME, OTHER = Signer(b"a" * 32).peer, Signer(b"b" * 32).peer
WHERE = "/ip4/10.0.0.7/tcp/4002"
ADDRESS = f"{WHERE}/p2p/{ME}"


def test_what_is_asked_and_answered_is_understood() -> None:
    assert read(question()) == Heard(True, ())
    assert read(answer("x" * 32, [ADDRESS, f"/ip6/fe80::1/tcp/1/p2p/{OTHER}"])) == Heard(
        False, ((ME, WHERE), (OTHER, "/ip6/fe80::1/tcp/1"))
    )


def test_an_answer_of_another_libp2p_with_pointers_and_other_records_is_understood() -> None:
    """As go-libp2p and js-libp2p write it: names that point back, and a service record between."""
    service = b"\x04_p2p\x04_udp\x05local\x00"
    head = struct.pack(">HHHHHH", 0, 0x8400, 0, 1, 0, 2)
    label = b"\x03abc\xc0\x0c"
    pointer = service + struct.pack(">HHIH", 12, 1, 120, len(label)) + label
    at_label = len(head) + len(service) + 10
    named = struct.pack(">H", 0xC000 | at_label)
    srv = named + struct.pack(">HHIH", 33, 1, 120, 7) + bytes(7)
    string = f"dnsaddr={ADDRESS}".encode()
    text = bytes([len(string)]) + string + b"\x05other"
    txt = named + struct.pack(">HHIH", 16, 0x8001, 120, len(text)) + text
    assert read(head + pointer + srv + txt) == Heard(False, ((ME, WHERE),))


@pytest.mark.parametrize(
    "address",
    [
        "/dns4/elsewhere.example/tcp/1/p2p/" + ME,
        f"{WHERE}/p2p/short",
        WHERE,
        f"{WHERE}/tls/p2p/{ME}",
        f"/ip4/10.0.0.1/udp/1/quic-v1/p2p/{ME}",
        f"{ADDRESS}/p2p-circuit/p2p/{OTHER}",
    ],
)
def test_what_is_no_numeric_address_of_plain_tcp_is_passed_over(address: str) -> None:
    assert read(answer("x", [address, ADDRESS])) == Heard(False, ((ME, WHERE),))


def test_only_so_much_is_taken_of_one_datagram() -> None:
    many = [f"/ip4/10.0.0.7/tcp/{port}/p2p/{ME}" for port in range(60)]
    assert len(read(answer("x", many)).found) == MAX_FOUND
    with pytest.raises(NoDns, match="entries"):
        read(struct.pack(">HHHHHH", 0, 0, 65_535, 65_535, 65_535, 65_535))


@pytest.mark.parametrize(
    "name", [b"\xc0\x0c", b"\xc0\x0e\xc0\x0c", b"\x01a\xc0\x0c", b"\x3fabc", b"\xc0", b""]
)
def test_a_name_that_leads_nowhere_is_no_name(name: bytes) -> None:
    with pytest.raises(NoDns):
        read(struct.pack(">HHHHHH", 0, 0, 1, 0, 0, 0) + name)


@given(st.binary(max_size=600))
def test_whatever_comes_is_read_or_refused(tail: bytes) -> None:
    for head in (question(), answer("x" * 32, [ADDRESS])):
        for datagram in (tail, head + tail, head[: len(tail) % len(head)] + tail):
            try:
                heard = read(datagram)
            except NoDns:
                continue
            assert len(heard.found) <= MAX_FOUND


def test_places_are_kept_bounded_and_the_newest_word_comes_first() -> None:
    nearby = Nearby()
    for port in range(1, 9):
        nearby.found(ME, f"/ip4/10.0.0.7/tcp/{port}")
    assert nearby.of(ME) == tuple(f"/ip4/10.0.0.7/tcp/{port}/noise" for port in (8, 7, 6, 5))
    assert len(nearby.of(ME)) == MAX_PLACES
    for number in range(MAX_PEERS):
        nearby.found(Signer(number.to_bytes(32, "big")).peer, WHERE)
    assert nearby.of(ME) == ()


def test_what_is_no_peer_or_no_address_is_nothing() -> None:
    nearby = Nearby()
    nearby.found(PeerId("1" * 52), WHERE)
    nearby.found(ME, "/ip4/999.0.0.1/tcp/1")
    nearby.found(ME, "/ip4/10.0.0.1/tcp/99999")
    assert nearby.of(ME) == nearby.of(PeerId("1" * 52)) == ()

"""Multiaddrs, direct and behind a conduit."""

from __future__ import annotations

import pytest

from edgepool.errors import DecodeError
from edgepool.model.ids import on_tcp, parse_address, peer_id_from_public_key, split_address, with_peer

CONDUIT = peer_id_from_public_key(bytes(31) + b"c")
MILL = peer_id_from_public_key(bytes(31) + b"m")
BEHIND = f"/ip4/10.0.0.7/tcp/4001/p2p/{CONDUIT}/p2p-circuit"


def test_a_direct_address_has_no_conduit() -> None:
    assert split_address("/ip4/10.0.0.7/tcp/4001") == ("10.0.0.7", 4001, None, None, False)
    assert split_address(f"/dns4/mill/tcp/1/p2p/{MILL}") == ("mill", 1, None, MILL, False)


def test_an_address_behind_a_conduit_names_both_peers() -> None:
    assert split_address(BEHIND) == ("10.0.0.7", 4001, CONDUIT, None, False)
    assert split_address(f"{BEHIND}/p2p/{MILL}") == ("10.0.0.7", 4001, CONDUIT, MILL, False)


def test_noise_behind_the_port_means_the_libp2p_road() -> None:
    assert split_address("/ip4/10.0.0.7/tcp/4002/noise") == ("10.0.0.7", 4002, None, None, True)
    behind = f"/ip4/10.0.0.7/tcp/4002/noise/p2p/{CONDUIT}/p2p-circuit/p2p/{MILL}"
    assert split_address(behind) == ("10.0.0.7", 4002, CONDUIT, MILL, True)
    assert on_tcp(behind) == f"/ip4/10.0.0.7/tcp/4002/p2p/{CONDUIT}/p2p-circuit/p2p/{MILL}"
    assert on_tcp(BEHIND) == BEHIND


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/10.0.0.7/tcp/4001/p2p-circuit",
        "/p2p-circuit",
        f"{BEHIND}/p2p-circuit",
        f"{BEHIND}/p2p/{CONDUIT}/p2p-circuit/p2p/{MILL}",
        f"{BEHIND}/p2p/mill",
        "/ip4/10.0.0.7/tcp/4002/noise/noise",
        f"/ip4/10.0.0.7/tcp/4002/p2p/{MILL}/noise",
        f"{BEHIND}/p2p/",
        f"{BEHIND}/tcp/1/p2p/{MILL}",
        f"{BEHIND}/p2p/{MILL}" + "x" * 200,
    ],
)
def test_what_is_no_address_behind_one_conduit_is_refused(address: str) -> None:
    with pytest.raises(DecodeError):
        split_address(address)


def test_where_a_direct_address_is_wanted_one_behind_a_conduit_is_refused() -> None:
    with pytest.raises(DecodeError):
        parse_address(BEHIND)


@pytest.mark.parametrize("address", ["/ip4/10.0.0.7/tcp/4001", "/ip6/::1/tcp/1", BEHIND])
def test_the_peer_is_written_at_the_end_of_an_address_once(address: str) -> None:
    assert with_peer(address, MILL) == f"{address}/p2p/{MILL}"
    assert with_peer(f"{address}/p2p/{MILL}", MILL) == f"{address}/p2p/{MILL}"

"""Identities and addresses, as libp2p writes them.

A peer id is the identity multihash of an Ed25519 public key in base58 ('12D3Koo...'), so it holds
the key itself; an address is a multiaddr such as '/ip4/10.0.0.7/tcp/4001'.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple, NewType

import base58

from edgepool.errors import DecodeError

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58, 52 characters for Ed25519."""

ChainId = NewType("ChainId", str)
"""40 lower-case hex digits: the start of the SHA-256 of the pool's genesis."""

# libp2p peer ids: identity multihash (0x00, length 36) of protobuf {type: Ed25519, 32-byte key}.
_PREFIX = bytes.fromhex("002408011220")
PUBLIC_KEY_BYTES = 32
_NOISE = "/noise"
_CIRCUIT = "/p2p-circuit"
_MAX_ADDRESS = 256


def peer_id_from_public_key(public_key: bytes) -> PeerId:
    """Return the peer id of a 32-byte Ed25519 public key."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise DecodeError(f"an Ed25519 public key has 32 bytes, this one has {len(public_key)}")
    return PeerId(base58.b58encode(_PREFIX + public_key).decode())


@lru_cache(maxsize=4096)
def public_key_of(peer: PeerId) -> bytes:
    """Return the 32-byte public key inside a peer id; DecodeError if it is not an Ed25519 one."""
    if len(peer) > 64:
        raise DecodeError("a peer id has at most 64 characters")
    try:
        raw = base58.b58decode(peer)
    except ValueError:
        raise DecodeError(f"'{peer}' is not a peer id: not base58") from None
    if len(raw) != len(_PREFIX) + PUBLIC_KEY_BYTES or not raw.startswith(_PREFIX):
        raise DecodeError(f"'{peer}' is not the peer id of an Ed25519 key")
    public_key = raw[len(_PREFIX) :]
    if peer_id_from_public_key(public_key) != peer:  # base58 decoders forgive outer blanks
        raise DecodeError(f"'{peer}' is not how the peer id of its key is written")
    return public_key


def short(peer: str) -> str:
    """Return a peer or chain id shortened for people: its last six characters."""
    return "…" + peer[-6:]


class Address(NamedTuple):
    """A multiaddr in its parts: where to connect, which peer is there, and behind which conduit.

    With a conduit, `host` and `port` are the conduit's; `peer` is the peer behind it. `libp2p` says that it
    is an address of the libp2p road, where Noise is spoken on the port.
    """

    host: str
    port: int
    conduit: PeerId | None
    peer: PeerId | None
    libp2p: bool = False


def split_address(address: str) -> Address:
    """Split '/ip4|ip6|dns4/HOST/tcp/PORT[/p2p/PEER]', or that of a peer behind a conduit.

    That is, as in libp2p, '/ip4/HOST/tcp/PORT/p2p/CONDUIT/p2p-circuit[/p2p/PEER]': one conduit, never two.
    Raises DecodeError, in one sentence, for anything else. /noise behind the port means the libp2p road.
    """
    over_libp2p = address.split("/")[5:6] == [_NOISE[1:]]
    plain = address.replace(_NOISE, "", 1) if over_libp2p else address
    direct, circuit, behind = plain.partition(_CIRCUIT)
    host, port, peer = parse_address(direct)
    if not circuit:
        return Address(host, port, None, peer, over_libp2p)
    if len(address) > _MAX_ADDRESS:
        raise DecodeError(f"an address has at most {_MAX_ADDRESS} characters")
    if peer is None:
        raise DecodeError(f"'{address}' is not an address: write the conduit's /p2p/PEER before {_CIRCUIT}")
    if not behind:
        return Address(host, port, peer, None, over_libp2p)
    empty, p2p, last = behind.partition("/p2p/")
    if empty or not p2p:
        raise DecodeError(f"'{address}' is not an address: nothing but /p2p/PEER may stand behind {_CIRCUIT}")
    public_key_of(PeerId(last))
    return Address(host, port, peer, PeerId(last), over_libp2p)


def with_peer(address: str, peer: PeerId) -> str:
    """Return a multiaddr with /p2p/PEER at its end, if that is not there yet."""
    return address if split_address(address).peer == peer else f"{address}/p2p/{peer}"


def parse_address(address: str) -> tuple[str, int, PeerId | None]:
    """Split a direct multiaddr '/ip4|ip6|dns4/HOST/tcp/PORT[/p2p/PEER]' into host, port and peer.

    Raises DecodeError, in one sentence, for anything else.
    """
    parts = address.split("/")
    shape = "use /ip4/HOST/tcp/PORT, with /p2p/PEER behind it if the peer is known"
    if len(address) > _MAX_ADDRESS or len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp":
        raise DecodeError(f"'{address[:80]}' is not an address: {shape}")
    kind, host, port_text = parts[1], parts[2], parts[4]
    try:
        if kind == "ip4":
            ipaddress.IPv4Address(host)
        elif kind == "ip6":
            ipaddress.IPv6Address(host)
        elif kind not in ("dns", "dns4", "dns6") or not host:
            raise ValueError
        port = int(port_text)
        if not 0 <= port <= 65535 or str(port) != port_text:
            raise ValueError
    except ValueError:
        raise DecodeError(f"'{address}' is not an address: {shape}") from None
    peer: PeerId | None = None
    if len(parts) == 7:
        if parts[5] != "p2p":
            raise DecodeError(f"'{address}' is not an address: {shape}")
        peer = PeerId(parts[6])
        public_key_of(peer)
    return host, port, peer


def format_address(host: str, port: int) -> str:
    """Return the multiaddr of a numeric host (or a DNS name) and a TCP port."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return f"/dns4/{host}/tcp/{port}"
    return f"/ip{version}/{host}/tcp/{port}"


def as_libp2p(host: str, port: int) -> str:
    """Return the address of a peer's libp2p road: that of its port, and that Noise is spoken there."""
    return format_address(host, port) + _NOISE


def on_tcp(address: str) -> str:
    """Return an address without what it says of its road: as libp2p dials it, without /noise."""
    return address.replace(_NOISE, "", 1) if split_address(address).libp2p else address

"""Makes a gateway's folder: key, certificate, and a configuration file that explains itself.

The folder appears whole or not at all: it is made aside and renamed.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepool.config import (
    CONFIG_FILE,
    ROLES,
    AuthoritySettings,
    ConduitSettings,
    FixedPool,
    IdentitySettings,
    KnownPeer,
    Libp2pSettings,
    PeerSettings,
    Road,
    Role,
    check_settings,
    load_peer_settings,
)
from edgepool.errors import ConfigError, LocalError
from edgepool.model.ids import PeerId, as_libp2p, format_address, parse_address
from edgepool.transport.certificates import (
    AUTHORITY_CERTIFICATE,
    create_authority,
    create_key,
    issue_certificate,
)
from edgepool.transport.identity import load_identity
from edgepool.transport.keyfiles import PASSPHRASE_VARIABLE, passphrase_of_environment

# Below the ports that systems give to outgoing connections, which could be taken when the peer starts.
_PORTS = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """What a new peer is to be; the fields mean what they mean in PeerSettings.

    `authority_folder` is for a coordinator that invites others: its authority, from the peer's folder.
    """

    name: str
    network: str
    role: Role = "machine"
    machine_type: str = ""
    listen: str = "/ip4/127.0.0.1/tcp/0"
    coordinators: tuple[str, ...] = ()
    known_peers: tuple[KnownPeer, ...] = ()
    fixed_pools: tuple[FixedPool, ...] = ()
    authority_folder: str = ""
    conduits: tuple[str, ...] = ()
    serve_conduit: bool = False
    transport: Road = "tls"
    libp2p_listen: str = Libp2pSettings().listen


def make_peer_folder(folder: Path, plan: PeerPlan, authority: Path) -> PeerSettings:
    """Make `folder` for a peer with a certificate of `authority` (which is made if need be) [S3.6].

    Raises LocalError if `folder` has anything in it, ConfigError if the plan makes no sense.
    """
    check_plan(folder, plan)
    refuse_used_folder(folder)
    refuse_authority_inside(folder, authority)
    if not (authority / AUTHORITY_CERTIFICATE).exists():
        create_authority(authority, plan.network)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        aside.mkdir(mode=0o700, parents=True)
        _fill(aside, plan, authority)
        os.replace(aside, folder)
    except OSError as error:
        raise LocalError(f"'{folder}' cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return load_peer_settings(folder)


def refuse_used_folder(folder: Path) -> None:
    """Raise LocalError if there is anything in `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LocalError(f"'{folder}' exists already and is never overwritten: name a new folder")


def refuse_authority_inside(folder: Path, authority: Path) -> None:
    """Raise LocalError if the `authority` is to be in the peer's folder that is to be made."""
    inside, outside = Path(os.path.abspath(authority)), Path(os.path.abspath(folder))
    if inside == outside or outside in inside.parents:
        raise LocalError(
            f"the authority '{authority}' would be in the folder of a gateway, '{folder}': give it one beside"
        )


def read_peer_id(settings: PeerSettings) -> PeerId:
    """Return the peer id of a folder's key without starting the peer."""
    return load_identity(settings).peer


def known_from_folder(folder: Path) -> tuple[KnownPeer, PeerSettings, PeerId]:
    """Return how to reach the peer of another folder on this machine, its settings and its id.

    ConfigError if it listens on a port that changes with each start.
    """
    settings = load_peer_settings(folder)
    peer = read_peer_id(settings)
    over_libp2p = settings.transport == "libp2p"
    if not over_libp2p and not settings.listen:
        raise ConfigError(f"'{folder}' accepts nothing from outside: name the folder of a peer that does")
    host, port, _ = parse_address(settings.libp2p.listen if over_libp2p else settings.listen)
    if port == 0:
        raise ConfigError(
            f"'{folder}' listens on port 0, which is not the same for ever: "
            f"write a fixed port behind 'listen' in its {CONFIG_FILE} first"
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = as_libp2p(host, port) if over_libp2p else format_address(host, port)
    return KnownPeer(settings.name, f"{address}/p2p/{peer}"), settings, peer


def free_ports(count: int) -> list[int]:
    """Return TCP ports that are free on loopback now; LocalError if there are not so many.

    They lie below the range that outgoing connections take theirs from, so that none of those can
    take the place of a peer that is away for a while.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            return found
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found.append(port)
    raise LocalError(
        f"fewer than {count} ports between {_PORTS.start} and {_PORTS.stop} are free: end what uses them"
    )


def _fill(folder: Path, plan: PeerPlan, authority: Path) -> None:
    identity = IdentitySettings()
    key = folder / identity.key
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    peer = create_key(key, passphrase_of_environment(PASSPHRASE_VARIABLE, LocalError))
    certificate = issue_certificate(
        authority,
        peer,
        name=plan.name,
        network=plan.network,
        role=plan.role,
        machine_type=plan.machine_type,
    )
    (folder / identity.certificate).write_bytes(certificate)
    shutil.copyfile(authority / AUTHORITY_CERTIFICATE, folder / identity.authority)
    (folder / CONFIG_FILE).write_text(config_text(plan), encoding="utf-8")


def check_plan(folder: Path, plan: PeerPlan) -> None:
    """Raise ConfigError if a peer in `folder` cannot be what `plan` says."""
    for what, text, least in (
        ("name", plan.name, 1),
        ("network", plan.network, 1),
        ("machine type", plan.machine_type, 0),
    ):
        if not least <= len(text) <= 64 or not text.isprintable() or text != text.strip():
            raise ConfigError(
                f"the {what} '{text[:80]}' is not {least} to 64 printable characters without outer spaces"
            )
    if plan.role not in ROLES:
        raise ConfigError(f"'{plan.role}' is not a role: use one of {', '.join(ROLES)}")
    settings = PeerSettings(
        name=plan.name,
        network=plan.network,
        role=plan.role,
        machine_type=plan.machine_type,
        listen=plan.listen,
        conduits=plan.conduits,
        conduit=ConduitSettings(serve=plan.serve_conduit),
        known_peers=plan.known_peers,
        fixed_pools=plan.fixed_pools,
        authority=AuthoritySettings(folder=plan.authority_folder),
        transport=plan.transport,
        libp2p=Libp2pSettings(listen=plan.libp2p_listen),
        folder=folder,
    )
    check_settings(settings, f"peer '{plan.name}'")


def config_text(plan: PeerPlan) -> str:
    """Return a configuration file for `plan` in which every setting is explained.

    What is commented out shows the value that holds without it.
    """
    return f"""\
# Settings of one edgepool peer. Paths are relative to this folder; run it with 'edgepool run'.
# Lines that begin with '# ' before a setting explain it; settings behind '#' show their defaults.

# What this peer is called, in which network, and as what: machine, coordinator, witness, inspector,
# regulator or client. Its certificate says the same, so changing this takes a new certificate.
name = {_quoted(plan.name)}
network = {_quoted(plan.network)}
role = {_quoted(plan.role)}

# What the machine is ('Milling', 'Wire cutting'); fixed pools gather machines of like types.
machine_type = {_quoted(plan.machine_type)}

# Where to listen, as a multiaddr: /ip4/ADDRESS/tcp/PORT. Port 0 takes any, and keeps it while it is free.
# With "" this peer accepts nothing from outside, and others reach it through its conduits.
listen = {_quoted(plan.listen)}

# Conduits at which this peer keeps a place, each with /p2p/PEER at the end: up to four, so that links come
# back when one dies. They pass what they cannot read.
conduits = {_list(plan.conduits)}

# Over what links go: "tls", "libp2p", or "both", which then dials by address. Data goes straight over TLS
# wherever two peers reach each other. libp2p needs an extra: pip install 'edgepool[libp2p]'.
transport = {_quoted(plan.transport)}

# The peers (ids) whose invitations to pools are believed. A coordinator counts itself in.
coordinators = {_list(plan.coordinators)}

{_known(plan.known_peers)}
{_pools(plan)}{_authority(plan)}
# The key, the certificate of this peer, and the root certificate of its organisation (PEM).
#[identity]
#key = "identity/key.pem"
#certificate = "identity/certificate.pem"
#authority = "identity/authority.pem"
# Roots of other organisations that are trusted before a main chain says so (PEM; 'edgepool org trust').
#trusted = "identity/trusted.pem"
# Peer ids, one a line, that are not let in, beside those that a main chain has revoked.
#revoked = "identity/revoked.txt"
# Where the passphrase of an encrypted key is, if it is not in the environment variable EDGEPOOL_PASSPHRASE:
# a file that only its owner may read, perhaps on another medium. 'edgepool key encrypt' sets it.
#passphrase_file = ""

{_conduit(plan)}
{_libp2p(plan)}
# To whom data goes for which its owner has set no policy: machines, coordinators, witnesses and inspectors of
# the "network", those of the "pool" in which it is offered, or nobody ("owner"): see 'edgepool policy set'.
# The log of who was granted or refused data takes so many bytes at most.
#[rights]
#default = "network"
#audit_bytes = 4194304

# The local HTTP API: loopback only. Port 0 takes a free one; api.json says which while it runs.
#[api]
#host = "127.0.0.1"
#port = 0

# Bounds on everything that others can make grow.
#[limits]
# The largest message, and how many bytes may wait to be sent to one peer.
#frame_bytes = 2097152
#outbox_bytes = 8388608
# How many peers may be linked, how many may be proving who they are, and for how long.
#links = 256
#handshakes = 32
#handshake_timeout_ms = 5000
# How often an idle link is tried.
#keepalive_ms = 5000
# How many transfers are served at once, and how long one may stand still before it is ended.
#transfers_served = 16
#transfer_stall_ms = 15000
# How many chains are kept, records wait on each, and queries are followed at once.
#chains = 256
#mempool_records = 4096
#queries = 256
# What the blocks of one chain should take on disk; older ones are dropped behind a snapshot.
#chain_bytes = 1073741824
# How much twin data may be stored, in bytes, and what the uplink carries, in Mbit/s.
#data_bytes = 68719476736
#link_mbit_s = 1000

# Times of the chains' protocol.
#[consensus]
# How long to wait for a block and for votes; each further round adds growth_ms.
#propose_timeout_ms = 1000
#vote_timeout_ms = 500
#growth_ms = 500
# How long a leader lets records gather before it packs a block.
#gather_ms = 4
# How often members tell each other where they stand: while working, and while idle.
#status_ms = 500
#idle_status_ms = 5000
# Which changes of a pool's members this one approves by itself: those that the coordinator proposes, or
# with "manual" none of them: then 'edgepool member approve' is for people.
#approve = "coordinator"
"""


def _known(known_peers: Sequence[KnownPeer]) -> str:
    head = "# Peers to keep a link to from the start; the others are met through pools.\n"
    if not known_peers:
        return (
            head + '#[[known_peers]]\n#name = "coordinator"\n#address = "/ip4/10.0.0.1/tcp/4001/p2p/PEER"\n'
        )
    tables = (
        f"[[known_peers]]\nname = {_quoted(known.name)}\naddress = {_quoted(known.address)}\n"
        for known in known_peers
    )
    return head + "\n".join(tables)


def _libp2p(plan: PeerPlan) -> str:
    head = (
        "# The road over libp2p: where its child process listens (a multiaddr), and how many bytes of\n"
        "# memory it may have on top of its libraries.\n"
    )
    mark = "" if plan.transport != "tls" else "#"
    return head + (
        f"{mark}[libp2p]\n{mark}listen = {_quoted(plan.libp2p_listen)}\n"
        f"#memory_bytes = {Libp2pSettings().memory_bytes}\n"
        "# Whether headers and certificates of new blocks are published to members that have subscribed.\n"
        "#events = false\n"
        "# Whether this peer passes circuits on for members, and at which relays (/p2p/PEER behind) it\n"
        "# keeps places itself, by which others reach it.\n"
        "#relay = false\n"
        "#relays = []\n"
        "# Whether the local network is asked where coordinators and members are, and told where this is.\n"
        "#mdns = false\n"
    )


def _pools(plan: PeerPlan) -> str:
    if plan.role != "coordinator":
        return ""
    head = (
        "# Fixed pools that this coordinator forms as soon as all members (by name) are connected.\n"
        "# Those of fewer than four members get peers of role witness that are linked, up to four.\n"
    )
    if not plan.fixed_pools:
        return head + '#[[fixed_pools]]\n#name = "milling"\n#members = ["mill-1", "mill-2", "mill-3"]\n'
    tables = (
        f"[[fixed_pools]]\nname = {_quoted(pool.name)}\nmembers = {_list(pool.members)}\n"
        for pool in plan.fixed_pools
    )
    return head + "\n".join(tables)


def _authority(plan: PeerPlan) -> str:
    if plan.role != "coordinator":
        return ""
    head = (
        "\n# The folder of the organisation's authority: with it 'edgepool invite' lets others join.\n"
        "# Whoever can read that folder can admit peers, so it should be on one machine only.\n"
    )
    if not plan.authority_folder:
        return head + '#[authority]\n#folder = ""\n'
    return head + f"[authority]\nfolder = {_quoted(plan.authority_folder)}\n"


def _conduit(plan: PeerPlan) -> str:
    switch = "[conduit]\nserve = true" if plan.serve_conduit else "#[conduit]\n#serve = false"
    return f"""\
# Whether this peer is a conduit for others, which needs a fixed port that they reach, and for how much:
# places and circuits in all, circuits of one peer, Mbit/s of all and of one peer (0: no bound), and how
# long a circuit may be silent.
{switch}
#reservations = 256
#circuits = 256
#circuits_per_peer = 64
#total_mbit_s = 0
#peer_mbit_s = 0
#idle_timeout_ms = 60000
"""


def _list(items: Sequence[str]) -> str:
    return "[" + ", ".join(_quoted(item) for item in items) + "]"


def _quoted(text: str) -> str:
    """Return `text` as a TOML basic string (printable text: JSON's quoting is TOML's)."""
    return json.dumps(text, ensure_ascii=False)

"""Settings: frozen, with units in their names; TOML in, one clear sentence out.

A peer's folder holds `edgepool.toml`; paths in it are relative to that folder. Unknown keys,
wrong types and broken TOML are refused with the file, the place and what to write instead.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from edgepool.errors import ConfigError, DecodeError
from edgepool.model.identity import ROLES as ROLES
from edgepool.model.identity import Role as Role
from edgepool.model.ids import parse_address, split_address

CONFIG_FILE = "edgepool.toml"
BUDGET_FILE = "budget.toml"
"""What was set with 'edgepool budget set'; it goes before [budget] in the settings."""
Approve = Literal["coordinator", "manual"]
Default = Literal["network", "pool", "owner"]
Road = Literal["tls", "libp2p", "both"]
"""Over what links go. Data goes straight over TLS wherever two peers reach each other."""

T = TypeVar("T")
Positive = Annotated[int, Meta(ge=1)]
MbitS = Annotated[int, Meta(ge=1, le=1_000_000)]
TimeOfDay = Annotated[str, Meta(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all settings."""


class IdentitySettings(Settings, frozen=True):
    """Where this peer's key, certificate and its organisation's root certificate are (PEM).

    `trusted` may hold the roots of other organisations (PEM, one behind the other), for as long as no main
    chain says whom to trust, and `revoked` peer ids that are not let in, one a line. `passphrase_file` is for
    its owner alone and opens an encrypted key; with "" that is for the environment variable
    EDGEPOOL_PASSPHRASE.
    """

    key: str = "identity/key.pem"
    certificate: str = "identity/certificate.pem"
    authority: str = "identity/authority.pem"
    trusted: str = "identity/trusted.pem"
    revoked: str = "identity/revoked.txt"
    passphrase_file: str = ""


class KnownPeer(Settings, frozen=True):
    """A peer to keep a link to from the start: its name and multiaddr with /p2p/PEER."""

    name: str
    address: str


class FixedPool(Settings, frozen=True):
    """A fixed pool that a coordinator forms as soon as all its members are connected [S3.4].

    `members` are names as in the peers' certificates.
    """

    name: str
    members: Annotated[tuple[str, ...], Meta(min_length=1, max_length=29)]


class AuthoritySettings(Settings, frozen=True):
    """Where the organisation's authority is (authority.pem, authority.key), if this peer invites others.

    A coordinator with `folder` set is a registrar: 'edgepool invite' makes codes for it [S3.6]. What it
    issues is valid for `certificate_valid_s` seconds; members renew it by themselves in time.
    """

    folder: Annotated[str, Meta(max_length=4096)] = ""
    certificate_valid_s: Annotated[int, Meta(ge=5, le=3650 * 86_400)] = 365 * 86_400


class ConduitSettings(Settings, frozen=True):
    """What a conduit does for peers that accept nothing from outside; `serve` switches it on.

    `reservations` is how many may keep a link to it, `circuits` how many ways between two peers may stand at
    once, and `circuits_per_peer` how many of them one peer may have asked for. The rates are for what passes
    it, both ways together: of all, and of the circuits that one peer has asked for; 0 is no bound.
    """

    serve: bool = False
    reservations: Annotated[int, Meta(ge=1, le=4096)] = 256
    circuits: Annotated[int, Meta(ge=1, le=4096)] = 256
    circuits_per_peer: Positive = 64
    total_mbit_s: Annotated[int, Meta(ge=0)] = 0
    peer_mbit_s: Annotated[int, Meta(ge=0)] = 0
    idle_timeout_ms: Positive = 60_000


class Libp2pSettings(Settings, frozen=True):
    """The road over libp2p: where its child listens, and what memory it may have on top of its libraries.

    With `events` headers and certificates of new blocks are published by gossipsub, to members alone. With
    `relay` it passes circuits on for members. With `listen` "" nothing is accepted from outside; others come
    through the relays at the multiaddrs in `relays`, each with /p2p/PEER at its end. With `mdns` it asks the
    local network where its coordinators and the members of its pools are, and says where it is itself.
    """

    listen: Annotated[str, Meta(max_length=256)] = "/ip4/127.0.0.1/tcp/0"
    memory_bytes: Annotated[int, Meta(ge=64 * 1024**2)] = 256 * 1024**2
    events: bool = False
    relay: bool = False
    mdns: bool = False
    relays: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=4)] = ()


class ApiSettings(Settings, frozen=True):
    """The local HTTP API. `host` must be a loopback address; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: Port = 0


class Limits(Settings, frozen=True):
    """Bounds on everything that others can make grow. A frame must have room for a whole block.

    `chain_bytes` is what the blocks of one chain should take on disk at most. It is a goal, not a wall: they
    are dropped a good part at a time, and those of the chain's window are always kept. A peer comes into no
    more pools than `chains`; those that it has left do not count until they are as many again.
    """

    frame_bytes: Annotated[int, Meta(ge=1536 * 1024, le=4 * 1024 * 1024)] = 2 * 1024 * 1024
    outbox_bytes: Annotated[int, Meta(ge=65536)] = 8 * 1024 * 1024
    links: Positive = 256
    handshakes: Positive = 32
    handshake_timeout_ms: Positive = 5_000
    keepalive_ms: Positive = 5_000
    transfers_served: Positive = 16
    transfer_stall_ms: Positive = 15_000
    chains: Positive = 256
    chain_bytes: Annotated[int, Meta(ge=1024 * 1024)] = 1024**3
    mempool_records: Positive = 4_096
    queries: Positive = 256
    data_bytes: Positive = 64 * 1024**3
    link_mbit_s: Positive = 1_000


class ConsensusSettings(Settings, frozen=True):
    """Times of the chains' protocol, in ms; each round adds `growth_ms` to the timeouts.

    `gather_ms` is how long a leader lets records gather before it packs a block. `approve` says which changes
    of a pool's members this one approves by itself: those that the coordinator proposes, or none of
    them ("manual"). What a member asks for itself, and the exclusion of proven liars, it always approves.
    """

    propose_timeout_ms: Positive = 1_000
    vote_timeout_ms: Positive = 500
    growth_ms: Positive = 500
    gather_ms: Annotated[int, Meta(ge=0)] = 4
    status_ms: Positive = 500
    idle_status_ms: Positive = 5_000
    approve: Approve = "coordinator"


class StorageSettings(Settings, frozen=True):
    """How twin data is kept; `limits.data_bytes` says how much of it.

    `keep_free_bytes` of the disk are left to chains and to other programs. `evict` says what happens when
    there is no room: what was used least recently goes ("lru"), or new data is refused ("never").
    The scrub reads all data again each `scrub_every_h`, at `scrub_bytes_s` (0: never).
    """

    keep_free_bytes: Annotated[int, Meta(ge=0)] = 256 * 1024**2
    evict: Literal["lru", "never"] = "lru"
    scrub_bytes_s: Annotated[int, Meta(ge=0)] = 4 * 1024**2
    scrub_every_h: Annotated[int, Meta(ge=1, le=24 * 365)] = 7 * 24


class BudgetHours(Settings, frozen=True, rename={"begin": "from", "end": "to"}):
    """A rate for a part of each day by this machine's clock, such as production hours."""

    begin: TimeOfDay
    end: TimeOfDay
    mbit_s: MbitS


class BudgetSettings(Settings, frozen=True):
    """How fast bulk data may move, in Mbit/s, each way; None is any rate.

    `mbit_s` is for the whole machine, unless the first of `hours` that fits says otherwise, `per_peer_mbit_s`
    for each peer. `priorities` are by kind of data, 1 to 9 (others have 5): kinds that wait share by them.
    Control traffic is not counted.
    """

    mbit_s: MbitS | None = None
    per_peer_mbit_s: MbitS | None = None
    hours: Annotated[tuple[BudgetHours, ...], Meta(max_length=24)] = ()
    priorities: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=32)], Annotated[int, Meta(ge=1, le=9)]],
        Meta(max_length=64),
    ] = {}


class RightsSettings(Settings, frozen=True):
    """To whom this peer hands data for which its owner has set no policy [S2.3].

    `default` "network" is every machine, coordinator, witness and inspector of the network, "pool" those of
    the pool in which the data is offered, "owner" nobody. Regulators and clients are never among them.
    `audit_bytes` is what the log of who was granted or refused data takes at most.
    """

    default: Default = "network"
    audit_bytes: Annotated[int, Meta(ge=64 * 1024)] = 4 * 1024 * 1024


class LiveSettings(Settings, frozen=True):
    """Live streams: how many of them, and what each may cost.

    A stream keeps its newest samples: at most `ring_bytes`, for at most `ring_age_s`. Samples gather for
    `gather_ms`, so that many travel together. At most `window_bytes` wait for the reader of a subscription.
    """

    streams: Positive = 64
    subscribers: Positive = 64
    ring_bytes: Annotated[int, Meta(ge=256 * 1024)] = 8 * 1024**2
    ring_age_s: Positive = 600
    gather_ms: Annotated[int, Meta(ge=0, le=1000)] = 4
    window_bytes: Annotated[int, Meta(ge=256 * 1024, le=64 * 1024**2)] = 1024**2


class PeerSettings(Settings, frozen=True):
    """Everything about one peer. `folder` is where it keeps keys, chains and data.

    With `listen` "" it accepts nothing from outside; others reach it by the conduits at the multiaddrs
    `conduits` (with /p2p/CONDUIT at the end), if there are any.
    `coordinators` are the peer ids that may form pools; a coordinator counts itself in.
    """

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    network: Annotated[str, Meta(min_length=1, max_length=64)]
    role: Role = "machine"
    machine_type: Annotated[str, Meta(max_length=64)] = ""
    listen: str = "/ip4/127.0.0.1/tcp/0"
    conduits: Annotated[tuple[str, ...], Meta(max_length=4)] = ()
    transport: Road = "tls"
    coordinators: tuple[str, ...] = ()
    folder: Path = Path(".")
    identity: IdentitySettings = IdentitySettings()
    known_peers: tuple[KnownPeer, ...] = ()
    fixed_pools: tuple[FixedPool, ...] = ()
    authority: AuthoritySettings = AuthoritySettings()
    conduit: ConduitSettings = ConduitSettings()
    api: ApiSettings = ApiSettings()
    limits: Limits = Limits()
    libp2p: Libp2pSettings = Libp2pSettings()
    storage: StorageSettings = StorageSettings()
    budget: BudgetSettings = BudgetSettings()
    live: LiveSettings = LiveSettings()
    consensus: ConsensusSettings = ConsensusSettings()
    rights: RightsSettings = RightsSettings()

    def path(self, relative: str) -> Path:
        """Return a path of this peer's folder."""
        return self.folder / relative


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file; ConfigError names the file and the line."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        last = f"(at line {len(raw.decode().splitlines())}, the end)"
        fault = str(error).replace("(at end of document)", last)
        raise ConfigError(f"{path} is not valid TOML: {fault}") from None


def convert(path: Path, tables: object, kind: type[T]) -> T:
    """Return `tables`, read from `path`, as `kind`; ConfigError names file, place and fault."""
    try:
        return msgspec.convert(tables, kind, dec_hook=_path_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(str(error))}") from None


def load_peer_settings(folder_or_file: Path) -> PeerSettings:
    """Read a peer's settings from its folder, or from a TOML file that stands in its folder."""
    path = folder_or_file / CONFIG_FILE if folder_or_file.is_dir() else folder_or_file
    if folder_or_file.is_dir() and not path.exists():
        raise ConfigError(
            f"'{folder_or_file}' is no gateway's folder (there is no {CONFIG_FILE} in it): "
            "name one that 'edgepool init' has made"
        )
    if not path.exists() and path.suffix != ".toml":
        raise ConfigError(f"{path} does not exist: make a gateway's folder with 'edgepool init {path}'")
    tables = read_toml(path)
    if "folder" in tables:
        raise ConfigError(f"{path}: 'folder' is where this file stands and cannot be set in it")
    settings = convert(path, {**tables, "folder": path.parent}, PeerSettings)
    budget = path.parent / BUDGET_FILE
    if budget.exists():
        settings = replace(settings, budget=convert(budget, read_toml(budget), BudgetSettings))
    check_settings(settings, str(path))
    return settings


def check_settings(settings: PeerSettings, where: str) -> None:
    """Raise ConfigError if the settings contradict each other or hold a bad address."""
    try:
        if settings.listen:
            parse_address(settings.listen)
        if settings.transport != "tls" and settings.libp2p.listen:
            parse_address(settings.libp2p.listen)
        for relay in settings.libp2p.relays:
            found = split_address(relay)
            if not found.libp2p or found.peer is None or found.conduit is not None:
                raise ConfigError(
                    f"{where}: libp2p.relays: '{relay}' is not /ip4/HOST/tcp/PORT/noise/p2p/RELAY"
                )
        for known in settings.known_peers:
            if split_address(known.address).peer is None:
                raise ConfigError(
                    f"{where}: known_peers.address '{known.address}' has no /p2p/PEER at its end"
                )
        for conduit in settings.conduits:
            if parse_address(conduit)[2] is None:
                raise ConfigError(f"{where}: conduits: '{conduit}' has no /p2p/CONDUIT at its end")
    except DecodeError as error:
        raise ConfigError(f"{where}: {error}") from None
    if settings.api.host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"{where}: api.host must be a loopback address, not '{settings.api.host}'")
    if settings.conduit.serve and (settings.conduits or not settings.listen):
        raise ConfigError(
            f"{where}: a conduit must be reached directly: set 'listen' and leave 'conduits' empty, "
            "or set serve = false under [conduit]"
        )
    if settings.fixed_pools and settings.role != "coordinator":
        raise ConfigError(f'{where}: only a coordinator forms fixed pools; set role = "coordinator"')
    if settings.authority.folder and settings.role != "coordinator":
        raise ConfigError(
            f'{where}: only a coordinator invites others; remove [authority], or set role = "coordinator"'
        )


def _path_hook(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    raise NotImplementedError


def _sentence(text: str) -> str:
    """Turn 'Expected `int`, got `str` - at `$.api.port`' into 'api.port: expected ...'."""
    fault, _, place = text.partition(" - at ")
    place = place.strip("`").removeprefix("$.").removeprefix("$")
    unknown = re.fullmatch("Object contains unknown field `(.*)`", fault)
    missing = re.fullmatch("Object missing required field `(.*)`", fault)
    table = f"in {place}" if place else "at its top"
    if unknown:
        return f"there is no setting '{unknown[1]}' {table}: correct its name, or move it to its table"
    if missing:
        return f"the setting '{missing[1]}' is missing {table}"
    fault = fault[:1].lower() + fault[1:]
    return f"{place}: {fault}" if place else fault

"""Looks at a gateway's machine and folder for `edgepool doctor`: files, disk, ports, chains, versions.

Nothing is changed but for a file of a few bytes that is written, synced and removed. Chains are read as they
are, whether their peer runs or not.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import secrets
import shutil
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from edgepool.config import PeerSettings
from edgepool.errors import ConfigError, EdgepoolError, StorageError
from edgepool.gateway.doctor import CertificateFacts, ChainFacts, Finding, IdentityFacts, check_version
from edgepool.model.block import CertifiedBlock
from edgepool.model.credential import read_root
from edgepool.model.ids import ChainId, PeerId, peer_id_from_public_key
from edgepool.model.pool import Genesis, Member
from edgepool.peer.rosters import known_rosters, replay
from edgepool.storage.reading import BlockReader, SegmentReader, UnfinishedBlock, decode_block, first_height
from edgepool.storage.segments import list_segments
from edgepool.storage.store import list_chains, read_genesis
from edgepool.transport.certificates import AUTHORITY_CERTIFICATE, AUTHORITY_KEY
from edgepool.transport.identity import (
    check_issuer,
    check_names,
    installed_roots,
    read_certificate,
    read_own_key,
)
from edgepool.transport.keychange import KeyChange
from edgepool.transport.keyfiles import is_encrypted, own_passphrase, read_key_bytes, refuse_open_key_file

LAST_BLOCKS = 16
REPLAY_BYTES = 16 * 1024**2
"""A chain of a peer that does not run is replayed up to this size, to know its members."""

_SYNCS = 7
_TIMEX_BYTES = 512  # struct timex has 208 on 64-bit Linux
_TIME_ERROR = 5
_BEYOND_ALL = 2**62
_MAX_FILES = 200_000
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_T = TypeVar("_T")


def identity_facts(settings: PeerSettings) -> IdentityFacts:
    """Read key, certificate and authority, and compare them with each other and the settings."""
    paths = settings.identity
    own, own_problem = _tried(lambda: read_own_key(settings))
    mine, certificate = _certificate(settings.path(paths.certificate))
    root, authority = _certificate(settings.path(paths.authority))
    match_problem = names_problem = ""
    if mine is not None:
        where = settings.path(paths.certificate)
        if own is not None and own[0].public_key() != mine.public_key():
            match_problem = f"{where} is not the certificate of {settings.path(paths.key)}"
        if root is not None and not match_problem:
            there = settings.path(paths.authority)
            match_problem = _tried(lambda: check_issuer(where, mine, there, root))[1]
        names_problem = _tried(lambda: check_names(where, mine, settings))[1]
    raw = _tried(lambda: read_key_bytes(settings.path(paths.key), ConfigError))[0] or b""
    passphrase_at = settings.path(paths.passphrase_file).resolve()
    inside = bool(paths.passphrase_file) and passphrase_at.is_relative_to(settings.folder.resolve())
    public = own[0].public_key() if own is not None else mine.public_key() if mine is not None else None
    peer = (
        peer_id_from_public_key(public.public_bytes_raw()) if isinstance(public, Ed25519PublicKey) else None
    )
    return IdentityFacts(
        peer=peer,
        key_problem=own_problem,
        encrypted=is_encrypted(raw),
        locked=is_encrypted(raw) and _tried(lambda: own_passphrase(settings)) == (None, ""),
        key_inside=inside,
        certificate=certificate,
        authority=authority,
        match_problem=match_problem,
        names_problem=names_problem,
    )


def lineage_problem(settings: PeerSettings, own: PeerId) -> str:
    """Say why the keys that a peer had before are not known, or ''."""
    return _tried(lambda: KeyChange(settings).line(own))[1]


def authority_key_problem(settings: PeerSettings) -> str:
    """Say why the authority of a peer that invites others cannot issue certificates, or ''."""
    key = settings.path(settings.authority.folder) / AUTHORITY_KEY
    _, problem = _tried(lambda: read_key_bytes(key, ConfigError))
    return problem or _tried(lambda: refuse_open_key_file(key, ConfigError))[1]


def authority_follower(settings: PeerSettings) -> str:
    """Return the fingerprint of a root of this organisation that is younger than its authority's here, or ''.

    Then the authority was followed by another one, which another registrar has.
    """
    try:
        pem = (settings.path(settings.authority.folder) / AUTHORITY_CERTIFICATE).read_bytes()
        here = read_root(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
        known = installed_roots(settings)
    except (EdgepoolError, OSError, ValueError):
        return ""  # other findings say so
    own = [root for root in known if root.organisation == here.organisation]
    newest = max(own, key=lambda root: root.valid_from_ms, default=here)
    return newest.fingerprint.hex() if newest.valid_from_ms > here.valid_from_ms else ""


def chain_facts(folder: Path, chain: ChainId, own: PeerId | None) -> ChainFacts:
    """Look at the last blocks of one chain in a peer's folder, as a peer with the id `own`."""
    where = folder / "chains" / chain
    genesis: Genesis | None = None
    name, damage, unfinished = chain[:8], "", False
    last: deque[CertifiedBlock] = deque(maxlen=LAST_BLOCKS)
    first = 1
    try:
        genesis = read_genesis(where)
        name = genesis.invitation.name
        first = first_height(where)
        for certified in _last_blocks(where, chain):
            if last and certified.block.header.previous != last[-1].block.header.id:
                raise StorageError(f"block {certified.block.header.height} does not follow the one before")
            last.append(certified)
        for certified in last:
            if problem := certified.block.body_problem():
                raise StorageError(f"block {certified.block.header.height}: {problem}")
    except UnfinishedBlock as error:
        damage, unfinished = str(error), True
    except EdgepoolError as error:
        damage = str(error)
    present, open_changes = (None, None) if damage or genesis is None else _members(folder, genesis, own)
    header = last[-1].block.header if last else None
    names = {} if genesis is None else {one.peer: one.name for one in genesis.invitation.people()}
    return ChainFacts(
        name=name,
        height=header.height if header else first - 1,
        first=first,
        newest_ms=header.time_ms if header else 0,
        newest_by=names.get(header.proposer, "") if header else "",
        damage=damage,
        unfinished=unfinished,
        present=present,
        open_changes=open_changes,
    )


def stored_members(folder: Path, own: PeerId | None) -> list[Member]:
    """Return the present members of all chains in a peer's folder but this peer, each once."""
    found: dict[str, Member] = {}
    for chain in list_chains(folder):
        for member in _roster(folder, chain):
            if member.peer != own:
                found[member.peer] = member
    return list(found.values())


def _roster(folder: Path, chain: ChainId) -> tuple[Member, ...]:
    """Return who is in a chain's pool as far as that is known without its blocks, () if it is damaged."""
    try:
        return known_rosters(folder, read_genesis(folder / "chains" / chain)).present
    except EdgepoolError:
        return ()


def bind_problem(host: str, port: int) -> str:
    """Say why `host` and `port` cannot be listened on now, or ''."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen(1)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def sync_time(folder: Path) -> tuple[float, str]:
    """Return how many ms a small write in `folder` takes until it is on the disk (median), or a problem."""
    path = folder / f".doctor-{secrets.token_hex(4)}"
    taken = []
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(_SYNCS):
                start = time.perf_counter()
                os.write(fd, bytes(512))
                os.fsync(fd)
                taken.append(1000 * (time.perf_counter() - start))
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)
    except OSError as error:
        return 0.0, (error.strerror or str(error)).lower()
    return statistics.median(taken), ""


def room(folder: Path) -> tuple[int, int]:
    """Return how many bytes are free where `folder` is, and how many its files take."""
    used = 0
    for number, path in enumerate(_files(folder)):
        if number >= _MAX_FILES:
            break
        try:
            used += os.lstat(path).st_size
        except OSError:
            continue
    return shutil.disk_usage(folder).free, used


def filesystem(folder: Path, table: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the kind of file system that `folder` is on, '' where the system does not tell."""
    here = folder.resolve()
    best, kind = -1, ""
    try:
        lines = table.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split(" ")
        if "-" not in fields[6:]:
            continue
        point = Path(fields[4].replace(r"\040", " "))
        if here.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[fields.index("-", 6) + 1]
    return kind


def clock_kept() -> bool | None:
    """Say whether a time service keeps this machine's clock; None where the system does not tell."""
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    # All zero, it changes nothing; the answer is the state of the clock.
    return None if answer < 0 else answer != _TIME_ERROR


def descriptor_limit(pid: int) -> int:
    """Return how many files the process `pid` may have open (0: this one); -1 is no limit."""
    try:
        soft = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except (AttributeError, OSError):
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return -1 if soft == resource.RLIM_INFINITY else soft


def version_findings() -> list[Finding]:
    """Compare Python and the libraries with what this package says it needs."""
    findings = [check_version("Python", platform.python_version(), _needed_python())]
    try:
        wanted = metadata.requires("edgepool") or []
    except metadata.PackageNotFoundError:
        wanted = []
    for line in wanted:
        requirement, _, marker = line.partition(";")
        name = _NAME.match(requirement)
        if "extra" in marker or name is None:
            continue
        try:
            installed = metadata.version(name[0])
        except metadata.PackageNotFoundError:
            installed = ""
        findings.append(check_version(name[0], installed, requirement[name.end() :].strip()))
    return findings


def _needed_python() -> str:
    try:
        return str(metadata.metadata("edgepool")["Requires-Python"] or "")
    except (metadata.PackageNotFoundError, KeyError):
        return ""


def _tried(work: Callable[[], _T]) -> tuple[_T | None, str]:
    """Return (result, '') of `work`, or (None, the sentence with which it failed)."""
    try:
        return work(), ""
    except EdgepoolError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{error.filename or 'the system'}: {error.strerror or error}"


def _certificate(path: Path) -> tuple[x509.Certificate | None, CertificateFacts]:
    certificate, problem = _tried(lambda: read_certificate(path))
    if certificate is None:
        return None, CertificateFacts(str(path), problem)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return certificate, CertificateFacts(
        str(path), "", int(start.timestamp() * 1000), int(end.timestamp() * 1000)
    )


def _last_blocks(where: Path, chain: ChainId) -> Iterator[CertifiedBlock]:
    """Yield the blocks in the last file of a chain; raises StorageError where one is not whole."""
    with BlockReader(where) as reader:
        segment = reader.segment(_BEYOND_ALL)
        if segment is not None and segment.size == SegmentReader.begin and segment.first > reader.first:
            segment = reader.segment(segment.first - 1)  # the last file has been begun just now
        if segment is None:
            return
        for found in segment.scan(segment.first, segment.begin):
            if isinstance(found, StorageError):
                raise found
            yield decode_block(where, chain, found.height, found.payload)


def _members(folder: Path, genesis: Genesis, own: PeerId | None) -> tuple[bool | None, int | None]:
    """Return (own vote, open changes), both None if that would take reading too much."""
    where = folder / "chains" / genesis.chain
    if own is None or sum(path.stat().st_size for _, path in list_segments(where)) > REPLAY_BYTES:
        return None, None
    state = _tried(lambda: replay(folder, genesis)[0])[0]
    if state is None:
        return None, None
    return any(member.peer == own for member in state.next_roster), len(state.open_changes())


def _files(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(place, name)

"""What `edgepool doctor` finds: facts about a gateway in, findings with advice out.

Everything here is a pure function: gathering.py and reach.py look at the machine; ways.py judges what
the network does. A fault keeps the peer from
working or its data from being safe; a warning does not yet, or may be meant so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgepool.config import ConduitSettings, Limits
from edgepool.model.ids import PeerId

Level = Literal["ok", "warn", "fault"]
WARN_DAYS = 30
WARN_SYNC_MS = 50.0
LEAST_FREE_BYTES = 256 * 1024**2
CLOCK_SLACK_MS = 2_000
"""The clocks of peers differ a little; a newest block so far ahead says nothing."""
SPARE_DESCRIPTORS = 128
VOLATILE = ("tmpfs", "ramfs")
_DAY_MS = 86_400_000
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_RANGE = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one thing; `advice` says what to do, '' if nothing is to be done."""

    check: str
    level: Level
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """A certificate's file; `problem` says why it cannot be read, and the times (wall ms) are 0 then."""

    path: str
    problem: str = ""
    not_before_ms: int = 0
    not_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class IdentityFacts:
    """A peer's key and certificates; the problems are sentences, '' for none. `peer` is its id as far
    as it is known.

    `locked` says that the key is encrypted and no passphrase is configured, `key_inside` that the file of
    the passphrase lies in the peer's folder, beside the key.
    """

    peer: PeerId | None
    key_problem: str
    encrypted: bool
    locked: bool
    key_inside: bool
    certificate: CertificateFacts
    authority: CertificateFacts
    match_problem: str
    names_problem: str


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """One chain in the folder. `damage` is a sentence, `unfinished` says that only the last block is cut off.

    `first` is the height of the first block that is here. `present` says if this peer votes and
    `open_changes` how many changes of members are undecided; None if that would take reading all blocks.
    """

    name: str
    height: int = 0
    first: int = 1
    newest_ms: int = 0
    newest_by: str = ""
    damage: str = ""
    unfinished: bool = False
    present: bool | None = None
    open_changes: int | None = None


def check_identity(facts: IdentityFacts, now_ms: int, running: bool = False) -> list[Finding]:
    """Judge key, certificate and authority: each alone, and together."""
    findings = [_check_key(facts, running)]
    findings.append(_check_certificate("certificate", facts.certificate, now_ms))
    findings.append(_check_certificate("authority", facts.authority, now_ms))
    for check, problem, advice in (
        (
            "certificate matches",
            facts.match_problem,
            "have a certificate issued for this key by this authority",
        ),
        ("names", facts.names_problem, "correct the settings, or have a certificate issued for them"),
    ):
        if problem:
            findings.append(Finding(check, "fault", problem, advice))
        elif not (facts.key_problem or facts.certificate.problem or facts.authority.problem):
            findings.append(Finding(check, "ok", "as the settings, the key and the authority say"))
    return findings


def _check_key(facts: IdentityFacts, running: bool) -> Finding:
    if facts.locked and running:
        found = "encrypted, and the passphrase that the running peer has is not configured here"
        return Finding(
            "key", "warn", found, "set EDGEPOOL_PASSPHRASE as its service does, to have all checked"
        )
    if facts.key_problem:
        return Finding("key", "fault", facts.key_problem, "without its key the peer does not start")
    if facts.encrypted and facts.key_inside:
        return Finding(
            "key",
            "warn",
            "encrypted, with the passphrase's file in the same folder",
            "keep that file on another medium, where a copy of the folder does not take it along",
        )
    state = "under a passphrase" if facts.encrypted else "plain, for its owner alone"
    return Finding("key", "ok", state)


def _check_certificate(check: str, facts: CertificateFacts, now_ms: int) -> Finding:
    renew = "have it renewed with a code: 'edgepool invite' for what it is, and 'edgepool renew' here"
    if check == "authority":
        renew = "rotate the root: 'edgepool org rotate' at the registrar, or the next one of your own PKI"
    if facts.problem:
        return Finding(check, "fault", facts.problem, "copy it there, or correct [identity] in the settings")
    days = (facts.not_after_ms - now_ms) // _DAY_MS
    if now_ms > facts.not_after_ms:
        return Finding(check, "fault", f"{facts.path} has expired {-days} days ago", renew)
    if now_ms < facts.not_before_ms:
        return Finding(check, "fault", f"{facts.path} is not valid yet", "set this machine's clock")
    # One that is made for a short time is renewed when a third of it is left.
    short_ms = min(WARN_DAYS * _DAY_MS, (facts.not_after_ms - facts.not_before_ms) // 4)
    if facts.not_after_ms - now_ms < short_ms:
        return Finding(check, "warn", f"{facts.path} expires in {days} days", renew)
    return Finding(check, "ok", f"valid for {days} days")


def check_authority_key(problem: str, follower: str) -> Finding:
    """Judge the key with which a registrar issues certificates; `problem` is a sentence, '' for none.

    `follower` is the fingerprint of a root that has followed its own, '' if there is none.
    """
    if problem:
        advice = "mend it, or nobody can be invited; a copy that others can read is theirs, too"
        return Finding("authority key", "fault", problem, advice)
    if follower:
        return Finding(
            "authority key",
            "warn",
            f"of a root that root {follower[:16]} follows: what it certifies ends with the old one",
            "have the next authority handed over: 'edgepool org hand-over' at the registrar that has it",
        )
    return Finding("authority key", "ok", "there, for its owner alone")


def check_lineage(problem: str) -> list[Finding]:
    """Judge what tells others of a peer's former keys; `problem` is a sentence, '' for none."""
    advice = "others whose settings name a former key do not find this peer under its present one"
    return [Finding("lineage", "warn", problem, advice)] if problem else []


def check_clock(now_ms: int, not_before_ms: int, chains: Iterable[ChainFacts]) -> Finding:
    """Judge this machine's clock by what must lie in the past; `not_before_ms` is the certificate's start."""
    if now_ms < not_before_ms:
        behind = _span(not_before_ms - now_ms)
        return Finding(
            "clock",
            "fault",
            f"{behind} before the start of the certificate",
            "set the clock, and keep it (NTP)",
        )
    newest = max(chains, key=lambda chain: chain.newest_ms, default=None)
    if newest is not None and newest.newest_ms > now_ms + CLOCK_SLACK_MS:
        behind = _span(newest.newest_ms - now_ms)
        return Finding(
            "clock",
            "fault",
            f"{behind} before the newest block of pool {newest.name}",
            f"set this machine's clock; if it is right, that of {newest.newest_by or 'its packer'} is ahead",
        )
    return Finding("clock", "ok", "behind the start of the certificate and the newest blocks")


def check_time_service(kept: bool | None) -> list[Finding]:
    """Judge whether a time service keeps the clock (`kept`; None where the system does not tell)."""
    if kept is None:
        return []
    if not kept:
        advice = "run a time service (chrony, systemd-timesyncd) with a server of the plant: clocks drift"
        return [Finding("time service", "warn", "nothing keeps this machine's clock right", advice)]
    return [Finding("time service", "ok", "the clock is kept")]


def check_room(free_bytes: int, used_bytes: int, limits: Limits, chains: int) -> Finding:
    """Judge free disk space by what the limits let data and chains grow to."""
    wanted = max(0, limits.data_bytes + limits.chain_bytes * max(1, chains) - used_bytes)
    found = f"{_gb(free_bytes)} free, up to {_gb(wanted)} more may be used"
    if free_bytes < LEAST_FREE_BYTES:
        return Finding("disk room", "fault", found, "free some space: a peer whose disk is full falls silent")
    if free_bytes < wanted:
        return Finding(
            "disk room", "warn", found, "lower limits.data_bytes or limits.chain_bytes, or take a larger disk"
        )
    return Finding("disk room", "ok", found)


def check_sync(sync_ms: float, problem: str) -> Finding:
    """Judge how long a small write takes until it is on the disk."""
    if problem:
        return Finding(
            "disk writes", "fault", f"cannot be written: {problem}", "check the disk, and the folder's owner"
        )
    found = f"a write is on the disk after {sync_ms:.1f} ms"
    if sync_ms > WARN_SYNC_MS:
        advice = "every block waits for this: take a faster disk, or look what else writes to it"
        return Finding("disk writes", "warn", found, advice)
    return Finding("disk writes", "ok", found)


def check_filesystem(kind: str) -> Finding:
    """Judge the kind of file system that the folder is on, '' if it is not known."""
    if kind in VOLATILE:
        advice = "move the folder to a disk: here all of it is gone when the power is"
        return Finding("file system", "warn", f"{kind}, which is memory", advice)
    return Finding("file system", "ok", kind or "not known on this system")


def check_folder(folder: str, mode: int, is_owner: bool) -> Finding:
    """Judge who may write to the peer's folder: `mode` is its st_mode."""
    if mode & 0o022:
        advice = f"run 'chmod go-w {folder}': who can write there can replace the peer's key and settings"
        return Finding("folder", "fault", "others than its owner may write to it", advice)
    if not is_owner:
        advice = "run the peer, and this command, as the owner of the folder"
        return Finding("folder", "warn", "it belongs to another user", advice)
    return Finding("folder", "ok", "only its owner may write to it")


def check_descriptors(limit: int, limits: Limits, conduit: ConduitSettings) -> Finding:
    """Judge how many files and connections a process may have open; -1 is no limit."""
    wanted = limits.links + limits.handshakes + 4 * limits.transfers_served + SPARE_DESCRIPTORS
    if conduit.serve:
        wanted += conduit.reservations + 2 * conduit.circuits
    found = f"{'no limit' if limit < 0 else limit}, up to {wanted} may be needed"
    if 0 <= limit < wanted:
        lower = "conduit.circuits" if conduit.serve else "limits.links"
        advice = f"raise it ('ulimit -n {wanted}', or LimitNOFILE of its service), or lower {lower}"
        return Finding("open files", "warn", found, advice)
    return Finding("open files", "ok", found)


def check_version(what: str, installed: str, wanted: str) -> Finding:
    """Judge an installed version ('' if there is none) by a range such as '<4,>=3.10'."""
    if installed and all(_fits(installed, sign, bound) for sign, bound in _RANGE.findall(wanted)):
        return Finding("versions", "ok", f"{what} {installed}")
    found = f"{what} {installed or 'is missing'}, but {wanted or 'any version'} is needed"
    return Finding("versions", "fault", found, f"install a {what} that fits")


def check_chain(facts: ChainFacts, folder: str, running: bool) -> Finding:
    """Judge one chain by its last blocks."""
    check = f"chain {facts.name}"
    if facts.damage and not facts.unfinished:
        advice = f"run 'edgepool chain verify {folder}'; then restore it, or take it from the other members"
        return Finding(check, "fault", facts.damage, advice)
    parts = [f"height {facts.height}"]
    if facts.first > 1:
        parts.append(f"pruned up to {facts.first - 1}")
    if facts.present is not None:
        parts.append("this peer votes" if facts.present else "this peer has no vote")
    if facts.unfinished and not running:
        found = ", ".join((*parts, "and the last write was cut off"))
        return Finding(check, "warn", found, "nothing: the next start sets aside what is not whole")
    if facts.open_changes:
        found = ", ".join((*parts, f"{facts.open_changes} open changes of its members"))
        return Finding(check, "warn", found, f"look at 'edgepool member list {folder}'")
    return Finding(check, "ok", ", ".join(parts))


def _fits(installed: str, sign: str, bound: str) -> bool:
    """Compare versions by their leading numbers, which is all that the ranges of this project use."""
    found = _VERSION.match(installed)
    numbers = [int(part) for part in found[0].split(".")] if found else [0]
    limits = [int(part) for part in bound.strip(".").split(".") if part]
    width = max(len(numbers), len(limits))
    ours = numbers + [0] * (width - len(numbers))
    theirs = limits + [0] * (width - len(limits))
    match sign:
        case ">=":
            return ours >= theirs
        case "<=":
            return ours <= theirs
        case "<":
            return ours < theirs
        case ">":
            return ours > theirs
        case "==":
            return ours == theirs
        case _:
            return ours != theirs


def _span(ms: int) -> str:
    for unit, length in (("days", _DAY_MS), ("hours", 3_600_000), ("minutes", 60_000)):
        if ms >= 2 * length:
            return f"{ms // length} {unit}"
    return f"{ms / 1000:.1f} seconds"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"

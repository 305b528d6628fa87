"""What `edgepool doctor` finds about how long certificates and roots last: pure functions only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgepool.gateway.doctor import WARN_DAYS, Finding
from edgepool.peer.lifeview import DAY_MS, CertificateStatus

WARN_ROOT_DAYS = 90
"""A root is replaced in time: that takes as long as the machine that is off for longest."""


@dataclass(frozen=True, slots=True)
class RootFacts:
    """A root that is trusted: `own` is of this peer's organisation. Times are ms since 1970 UTC."""

    organisation: str
    fingerprint: str
    own: bool
    valid_until_ms: int


def check_renewal(certificate: CertificateStatus, now_ms: int) -> Finding:
    """Judge whether a running peer's certificate is renewed in time."""
    check = "renewal"
    if certificate.is_overdue(now_ms):
        why = certificate.problem or "nothing was tried yet"
        advice = (
            "start a coordinator of its organisation that has the authority, or mend the link to it; if "
            "there is none, have a request signed ('edgepool csr'), or use a code ('edgepool renew')"
        )
        return Finding(check, "warn", f"overdue: {why}", advice)
    if certificate.problem:
        return Finding(check, "ok", f"it is tried again by itself: {certificate.problem}")
    days = (certificate.due_ms - now_ms) / DAY_MS
    return Finding(check, "ok", f"by itself, in {days:.0f} days" if days >= 1 else "by itself, within a day")


def check_roots(roots: Iterable[RootFacts], now_ms: int) -> list[Finding]:
    """Judge how long the trusted roots last; one finding for each that soon ends, or one for all."""
    findings, count = list[Finding](), 0
    for root in roots:
        count += 1
        days = (root.valid_until_ms - now_ms) // DAY_MS
        if days >= WARN_ROOT_DAYS:
            continue
        advice = f"have '{root.organisation}' rotate its root, and admit the next one"
        if root.own:
            advice = "rotate it: 'edgepool org rotate' at the registrar, or the next one of your own PKI"
        ends = f"has expired {-days} days ago" if days < 0 else f"expires in {days} days"
        found = f"root {root.fingerprint[:16]} of '{root.organisation}' {ends}"
        # Without its own root a peer is nobody; without another's, it loses those members alone.
        findings.append(Finding("roots", "fault" if root.own and days < 0 else "warn", found, advice))
    return findings or [Finding("roots", "ok", f"{count} trusted, each for {WARN_ROOT_DAYS} days and more")]


def check_members(members: Iterable[tuple[str, int]], now_ms: int) -> list[Finding]:
    """Judge the certificates that linked peers have shown, given as (name, lapses at)."""
    late = [(name, (until_ms - now_ms) / DAY_MS) for name, until_ms in members if until_ms]
    return [
        Finding(
            f"certificate of {name}",
            "warn",
            f"expires in {days:.0f} days" if days >= 1 else "has expired, or does so within a day",
            f"see 'edgepool doctor' on {name}: it should have been renewed",
        )
        for name, days in late
        if days < WARN_DAYS
    ]

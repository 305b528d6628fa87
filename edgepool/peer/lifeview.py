"""The part of a peer's status about how long certificates and roots last; times are ms since 1970 UTC."""

from __future__ import annotations

import msgspec

DAY_MS = 86_400_000


class CertificateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A peer's own certificate. `due_ms` is when a newer one is asked for, 0 if its root has a successor.

    `days_left` is in days, below 0 if it has expired. `problem` says why the last attempt to renew it has
    failed, '' if it has not.
    """

    issued_ms: int
    valid_until_ms: int
    days_left: float
    due_ms: int
    problem: str

    def is_overdue(self, now_ms: int) -> bool:
        """Say whether it should have been renewed long ago: a quarter of the time that was left is over."""
        return now_ms > self.due_ms + (self.valid_until_ms - self.due_ms) / 4 if self.due_ms else False


class RootLife(msgspec.Struct, frozen=True, kw_only=True):
    """A trusted root and how long it lasts; `own` is the one that has issued this peer's certificate."""

    fingerprint: str
    organisation: str
    own: bool
    valid_until_ms: int
    days_left: float


def days_left(until_ms: int, now_ms: int) -> float:
    """Return how many days are left until a time, to a tenth of a second; below 0 if it is over."""
    return round((until_ms - now_ms) / DAY_MS, 6)


def overdue_problem(certificate: CertificateStatus, now_ms: int) -> str:
    """Return a sentence if a certificate has lapsed, or should have been renewed long ago, else ''."""
    if now_ms > certificate.valid_until_ms:
        what = "this peer's certificate has expired: its links end, and nobody lets it in any more"
    elif certificate.is_overdue(now_ms):
        left = certificate.days_left
        time = f"{left:.0f} days" if left >= 2 else f"{24 * left:.0f} hours"
        what = f"this peer's certificate expires in {time} and was not renewed"
    else:
        return ""
    return f"{what} ({certificate.problem or 'nothing was tried yet'})"

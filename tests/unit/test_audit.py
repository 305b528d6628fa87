"""The audit log: what is written stays, a flood fills no disk, and what is torn costs one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from edgepool.config import PeerSettings, RightsSettings
from edgepool.core.machine import AccessRefused, Instant
from edgepool.core.rights import Subject
from edgepool.errors import StorageError
from edgepool.model.ids import PeerId
from edgepool.model.twin import DataKey
from edgepool.peer import rights
from edgepool.peer.rights import DataRights
from edgepool.storage import audit
from edgepool.storage.audit import FILES, AuditEntry, AuditLog, read_audit

ENTRY = AuditEntry(1, "p", "mill", "machine", "Works", "P-1/model", "00", "production", True)
LIMIT = 64 * 1024


def test_what_was_written_is_read_in_its_order_also_by_another(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, LIMIT)
    assert list(read_audit(tmp_path)) == []
    for time_ms in range(3):
        log.append(replace(ENTRY, time_ms=time_ms))
        assert log.dirty
    assert [one.time_ms for one in read_audit(tmp_path)] == [0, 1, 2]
    log.sync()
    assert not log.dirty
    log.close()
    again = AuditLog(tmp_path, LIMIT)
    again.append(replace(ENTRY, granted=False, reason="no", unwritten=7))
    again.close()
    assert list(read_audit(tmp_path))[-1] == replace(ENTRY, granted=False, reason="no", unwritten=7)
    assert (tmp_path / "audit" / "audit.log").stat().st_mode & 0o777 == 0o600


def test_the_log_stays_within_its_bytes_and_the_oldest_goes(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, LIMIT)
    for time_ms in range(2_000):
        log.append(replace(ENTRY, time_ms=time_ms))
    log.close()
    files = list((tmp_path / "audit").iterdir())
    assert len(files) == FILES
    assert sum(path.stat().st_size for path in files) <= LIMIT
    times = [one.time_ms for one in read_audit(tmp_path)]
    assert times == list(range(times[0], 2_000))
    assert len(times) > 200


def test_a_torn_line_costs_that_line_only(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, LIMIT)
    log.append(ENTRY)
    log.append(replace(ENTRY, time_ms=2))
    log.close()
    path = tmp_path / "audit" / "audit.log"
    path.write_bytes(path.read_bytes()[:-9])
    again = AuditLog(tmp_path, LIMIT)
    again.append(replace(ENTRY, time_ms=3))
    again.close()
    assert [one.time_ms for one in read_audit(tmp_path)] == [1, 3]


def test_a_disk_that_fails_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    log = AuditLog(tmp_path, LIMIT)
    log.append(ENTRY)
    monkeypatch.setattr(audit.os, "write", full)
    with pytest.raises(StorageError, match="the disk is full"):
        log.append(ENTRY)
    monkeypatch.undo()
    log.close()


class Desk:
    """The rights of a peer without the peer; `now_ms` is its clock."""

    def __init__(self, folder: Path) -> None:
        self.now_ms = 0
        self.told: list[object] = []
        settings = PeerSettings(
            name="mill", network="n", folder=folder, rights=RightsSettings(audit_bytes=LIMIT)
        )
        peer = SimpleNamespace(settings=settings, connected=tuple, tell=self.told.append)
        clock = SimpleNamespace(now=lambda: Instant(self.now_ms, self.now_ms))
        self.rights = DataRights(peer, clock, lambda chain: chain)  # type: ignore[arg-type,return-value]

    def refuse(self, peer: str) -> None:
        key = DataKey("P-1", "model")
        self.rights.told(AccessRefused(Subject(PeerId(peer)), key, bytes(32), "marketing", "no"))


def test_a_flood_of_one_peer_is_counted_and_hides_no_other(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for _ in range(100_000):
        desk.refuse("liar")
    desk.refuse("honest")
    desk.now_ms = rights.ONE_EVERY_MS
    desk.refuse("liar")
    desk.rights.close()
    entries = list(read_audit(tmp_path))
    assert len(entries) == rights.BURST + 2
    unwritten = 100_000 - rights.BURST
    assert [(one.peer, one.unwritten) for one in entries[-2:]] == [("honest", 0), ("liar", unwritten)]
    assert len(desk.told) == len(entries), "a flood does not push other events out of the queues of readers"


def test_of_many_peers_no_more_are_counted_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "PEERS_COUNTED", 8)
    desk = Desk(tmp_path)
    for number in range(100):
        desk.refuse(f"peer {number}")
    assert len(desk.rights._rations) <= 8
    desk.rights.close()

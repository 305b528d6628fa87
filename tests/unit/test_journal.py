from __future__ import annotations

from pathlib import Path

import pytest

from edgepool.errors import StorageError
from edgepool.workshop.journal import Intent, Journal

FIRST = Intent("T001", "pool-01", ("a", "b"), False)
SECOND = Intent("T002", "pool-01", ("a", "b"), True)


def reopened(path: Path) -> Journal:
    journal = Journal(path)
    journal.close()
    return journal


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(FIRST)
    journal.write(SECOND)
    journal.close()
    assert reopened(tmp_path / "journal.jsonl").intents == {"T001": FIRST, "T002": SECOND}


def test_a_task_that_was_given_up_can_be_given_out_again_but_its_pool_name_stays_used(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(FIRST)
    journal.write(Intent("T001", "pool-01", ("a", "b"), False, given_up=True))
    journal.close()
    again = reopened(tmp_path / "journal.jsonl")
    assert again.intents == {}
    assert list(again.pools) == ["pool-01"]


def test_a_line_that_was_torn_by_a_kill_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(FIRST)
    journal.write(SECOND)
    journal.close()
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for end in range(first_line, len(whole), 13):
        path.write_bytes(whole[:end])
        again = Journal(path)
        assert again.intents == {"T001": FIRST}
        again.write(SECOND)
        again.close()
        assert path.read_bytes() == whole


def test_damage_inside_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"nonsense\n")
    with pytest.raises(StorageError, match="line 1 is damaged"):
        Journal(path)

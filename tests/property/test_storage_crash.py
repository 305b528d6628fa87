"""A model of the disk under a power cut: what was synced stays, of the rest each sector may come or not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepool.errors import StorageError
from edgepool.model.ids import ChainId
from edgepool.storage.blocks import BlockLog
from edgepool.storage.log import HEADER, PREFACE
from edgepool.storage.reading import scan_blocks
from edgepool.storage.segments import segment_path
from edgepool.storage.votes import VoteLog

SECTOR_BYTES = 512

payloads = st.binary(max_size=40) | st.integers(400, 1500).map(lambda size: b"\xf1EPE" * (size // 4))
batches = st.lists(st.lists(payloads, min_size=1, max_size=4), max_size=5)


@st.composite
def power_cuts(draw: st.DrawFn) -> tuple[float, list[bool]]:
    """Where the file ends, as a share of what was not synced, and which sectors came."""
    return draw(st.floats(0, 1)), draw(st.lists(st.booleans(), min_size=1, max_size=16))


def cut_power(path: Path, durable_bytes: int, cut: tuple[float, list[bool]]) -> None:
    share, came = cut
    data = bytearray(path.read_bytes())
    del data[durable_bytes + round(share * (len(data) - durable_bytes)) :]
    for number, start in enumerate(range(0, len(data), SECTOR_BYTES)):
        if not came[number % len(came)]:
            start, end = max(start, durable_bytes), min(start + SECTOR_BYTES, len(data))
            data[start:end] = bytes(max(0, end - start))
    path.write_bytes(data)


@given(st.lists(st.tuples(batches, st.lists(payloads, max_size=4), power_cuts()), min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_what_was_acknowledged_comes_back_and_nothing_is_invented(
    lives: list[tuple[list[list[bytes]], list[bytes], tuple[float, list[bool]]]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = segment_path(folder, 1)
        acknowledged: list[bytes] = []
        for synced, unsynced, cut in lives:
            log = BlockLog(folder)
            for batch in synced:
                for payload in batch:
                    log.append(log.height + 1, payload)
                log.sync()
                acknowledged += batch
            durable_bytes = path.stat().st_size
            for payload in unsynced:
                log.append(log.height + 1, payload)
            log.close()
            cut_power(path, durable_bytes, cut)

            log = BlockLog(folder)
            found = [log.read(height) for height in range(1, log.height + 1)]
            assert found[: len(acknowledged)] == acknowledged
            assert found == (acknowledged + unsynced)[: len(found)]
            assert list(scan_blocks(folder)) == list(enumerate(found, 1))
            acknowledged = found  # it has been reported as there, so it must stay
            log.close()


@given(st.lists(payloads, min_size=1, max_size=6), st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_is_found_in_its_block(blocks: list[bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = segment_path(folder, 1)
        log = BlockLog(folder)
        ends = [PREFACE.size]
        for payload in blocks:
            log.append(log.height + 1, payload)
            ends.append(ends[-1] + HEADER.size + len(payload))
            log.sync()
        log.close()
        raw = bytearray(path.read_bytes())
        offset = data.draw(st.integers(0, len(raw) - 1))
        raw[offset] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        bad = max(1, next(height for height, end in enumerate(ends) if offset < end))

        *whole, (height, error) = scan_blocks(folder)
        assert whole == list(enumerate(blocks[: bad - 1], 1))
        assert height == bad
        assert isinstance(error, StorageError)
        assert f"block {bad} is damaged" in str(error)
        assert path.read_bytes() == bytes(raw)
        if bad < len(blocks):
            with pytest.raises(StorageError, match=f"block {bad} is damaged"):
                BlockLog(folder)


chains = st.integers(0, 3).map(lambda number: ChainId(f"{number:02x}" * 20))
votes = st.lists(st.tuples(chains, payloads), max_size=4)


@given(st.lists(votes, max_size=6), votes, power_cuts())
@settings(max_examples=80, deadline=None)
def test_no_vote_that_was_acknowledged_is_forgotten(
    synced: list[list[tuple[ChainId, bytes]]],
    last: list[tuple[ChainId, bytes]],
    cut: tuple[float, list[bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "votes.log"
        log = VoteLog(path)
        acknowledged: dict[ChainId, bytes] = {}
        for batch in synced:
            for chain, state in batch:
                log.put(chain, state)
            log.sync()
            acknowledged.update(batch)
        durable_bytes = path.stat().st_size
        for chain, state in last:
            log.put(chain, state)
        log.sync()  # but the power is cut before it returns
        log.close()
        cut_power(path, durable_bytes, cut)
        found = VoteLog(path).states()
        unsynced = dict(last)
        assert all(found[chain] in (state, unsynced.get(chain)) for chain, state in acknowledged.items())
        assert all(state in (acknowledged.get(chain), unsynced.get(chain)) for chain, state in found.items())

"""A new version of known data travels as what differs, and is whole all the same."""

from __future__ import annotations

from pathlib import Path
from random import Random

from peer_cell import open_cell

from edgepool import DataKey

KEY = DataKey("PTVA10212-01", "model")
MB = 1024 * 1024


async def test_a_new_version_travels_as_what_differs(tmp_path: Path) -> None:
    random = Random(5)
    old = random.randbytes(6 * MB + 500)
    new = bytearray(old)
    for place in (3 * MB + 10, 4 * MB + 77, 6 * MB):  # two chunks stay as they were
        new[place : place + 20] = random.randbytes(400)
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, old)
        first = await requester.fetch(KEY)
        assert first.read() == old
        assert first.wire_bytes > len(old)
        await holder.publish(KEY, bytes(new))
        second = await requester.fetch(KEY, version=2)
        assert second.read() == bytes(new)
        assert second.wire_bytes < 64 * 1024
        assert sum(second.shares.values()) <= len(new) - 3 * MB, "what both versions have is not sent"


async def test_a_damaged_older_version_only_costs_time(tmp_path: Path) -> None:
    random = Random(6)
    old = random.randbytes(2 * MB)
    new = old[:100] + b"!" + old[100:-100]
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, old)
        first = await requester.fetch(KEY)
        with first.path.open("r+b") as file:
            file.seek(5000)
            file.write(bytes(100_000))
        await holder.publish(KEY, new)
        second = await requester.fetch(KEY, version=2)
        assert second.read() == new


async def test_text_is_compressed_on_the_way(tmp_path: Path) -> None:
    code = b"".join(b"N%d G1 X%d.%03d Y-%d F1200\n" % (n, n % 90, n % 1000, n % 77) for n in range(60_000))
    async with open_cell(tmp_path, 2) as cell:
        holder, requester = cell.machines
        await holder.publish(KEY, code)
        fetched = await requester.fetch(KEY)
        assert fetched.read() == code
        assert fetched.wire_bytes < len(code) / 3

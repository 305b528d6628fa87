"""A new version of known data: 200 MB with 1 % scattered edits, and how many bytes of it travel."""

from __future__ import annotations

from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from edgepool.bench.transfer.material import Data, make_data, make_folder, make_sides
from edgepool.bench.transfer.order import Order, Tell
from edgepool.bench.transfer.side import copying

SIZE_BYTES = 200_000_000
EDITED = 0.01
_EDIT_BYTES = 64


async def measure_delta(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the fraction of bytes that travel, and the rate at which the new version is there, checked.

    The holder has both versions, the requester the old one; what travels is counted sealed, as sent.
    """
    tell("making two versions")
    size_bytes = min(SIZE_BYTES, order.size_bytes)
    old, _ = make_versions(make_folder(folder / "versions"), size_bytes)
    sender, receiver = make_sides(folder, "sender", "receiver")
    told = []
    async with copying("lane", Data(folder / "versions", size_bytes, ""), [sender], receiver) as made:
        for number in range(order.rounds + 1):
            tell(f"round {number} of {order.rounds}")
            one = await made.once(old=str(old))
            told += [one] if number else []
    took_s = median(one["took_s"] for one in told)
    return {
        "size_bytes": size_bytes,
        "edited": EDITED,
        "bytes_fraction": round(told[0]["wire_bytes"] / size_bytes, 5),
        "MBps": round(size_bytes / took_s / 1e6, 1),
        "cpu_s_per_GiB": round(median(one["cpu_s"] for one in told) * 2**30 / size_bytes, 3),
    }


def make_versions(folder: Path, size_bytes: int = SIZE_BYTES, seed: int = 0) -> tuple[Path, Path]:
    """Write two versions of data, of which edits of 64 bytes at random places change 1 %."""
    old = make_data(folder / "old", size_bytes, seed).path
    draw = Random(seed)
    content = bytearray(old.read_bytes())
    for _ in range(int(size_bytes * EDITED / _EDIT_BYTES)):
        place = draw.randrange(size_bytes - _EDIT_BYTES)
        content[place : place + _EDIT_BYTES] = draw.randbytes(_EDIT_BYTES)
    new = folder / "new"
    new.write_bytes(content)
    return old, new

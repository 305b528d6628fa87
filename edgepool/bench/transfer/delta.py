"""A new version of known data: 200 MB with 1 % scattered edits, and how many bytes of it travel."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from edgepool.bench.transfer.material import make_data
from edgepool.bench.transfer.order import Order, Tell
from edgepool.errors import Unavailable

SIZE_BYTES = 200_000_000
EDITED = 0.01
_EDIT_BYTES = 64


async def measure_delta(order: Order, folder: Path, tell: Tell) -> dict[str, Any]:
    """Return the fraction of bytes that travel, and the rate at which the new version is there."""
    raise Unavailable("this version sends no differences: a new version travels as a whole")


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

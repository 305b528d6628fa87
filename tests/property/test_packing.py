"""What is packed comes out as it went in, whatever has changed; what nobody packed is refused in bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepool.errors import DecodeError
from edgepool.model.crypto import data_hash
from edgepool.model.twin import Manifest
from edgepool.transport.packing import REACH_BYTES, Base, Packer, open_base, pays, unpack

CHUNK = 64 * 1024


def manifest_of(data: bytes) -> Manifest:
    chunks = (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
    return Manifest(len(data), CHUNK, tuple(data_hash(chunk) for chunk in chunks))


@contextmanager
def base_of(data: bytes) -> Iterator[Base]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "old"
        path.write_bytes(data)
        base = open_base(manifest_of(data), path)
        try:
            yield base
        finally:
            base.close()


def packed_bytes(new: bytes, base: Base | None) -> int:
    """Pack and unpack all chunks of `new`; return how many bytes travelled."""
    packer = Packer(base)
    travelled = 0
    for offset in range(0, len(new), CHUNK):
        chunk = new[offset : offset + CHUNK]
        packed = packer.pack(offset, memoryview(chunk))
        if packed is not None:
            assert unpack(memoryview(packed), len(chunk), base) == chunk
        travelled += len(chunk if packed is None else packed)
    return travelled


edits = st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=300), st.integers(0, 300)), max_size=8)


@given(st.integers(0, 2**32), st.integers(0, 300_000), edits)
def test_every_edited_version_comes_out_whole(
    seed: int, size_bytes: int, changes: list[tuple[int, bytes, int]]
) -> None:
    old = Random(seed).randbytes(size_bytes)
    new = bytearray(old)
    for place, put, cut in changes:
        start = place % (len(new) + 1)
        new[start : start + cut] = put
    with base_of(old) as base:
        packed_bytes(bytes(new), base)


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_versions_that_have_nothing_in_common_come_out_whole(old: bytes, new: bytes) -> None:
    with base_of(old) as base:
        packed_bytes(new, base)
    packed_bytes(new, None)


def test_a_small_change_travels_as_little_more_than_itself() -> None:
    random = Random(1)
    old = random.randbytes(64 * CHUNK)
    new = bytearray(old)
    for _ in range(40):
        place = random.randrange(len(new) - 1000)
        new[place : place + 1000] = random.randbytes(1000)
    with base_of(old) as base:
        assert packed_bytes(bytes(new), base) < 0.02 * len(new)


def test_what_was_moved_far_is_found_again() -> None:
    random = Random(2)
    old = random.randbytes(64 * CHUNK)
    new = random.randbytes(2 * REACH_BYTES) + old
    with base_of(old) as base:
        assert packed_bytes(new, base) < 2 * REACH_BYTES + 9 * CHUNK


def test_text_pays_and_noise_does_not(tmp_path: Path) -> None:
    for name, data, expected in (
        ("code", b"G1 X10.25 Y-3.5 F1200\n" * 20_000, True),
        ("noise", Random(3).randbytes(400_000), False),
    ):
        (tmp_path / name).write_bytes(data)
        descriptor = os.open(tmp_path / name, os.O_RDONLY)
        try:
            assert pays(descriptor, len(data)) is expected
        finally:
            os.close(descriptor)


@given(st.binary(max_size=400), st.integers(0, 4000))
def test_what_nobody_packed_is_refused(content: bytes, size_bytes: int) -> None:
    for base in (None, Base(manifest_of(b""), -1)):
        if base is not None and content[:8] != b"\xff" * 8:
            continue  # it would be looked for in a file
        with pytest.raises(DecodeError):
            unpack(memoryview(content), size_bytes, base)


def test_a_packed_chunk_of_another_size_is_refused_before_it_takes_memory() -> None:
    packed = Packer(None).pack(0, memoryview(bytes(CHUNK)))
    assert packed is not None
    for size_bytes in (0, 1, CHUNK - 1, CHUNK + 1):
        with pytest.raises(DecodeError, match="another size"):
            unpack(memoryview(packed), size_bytes, None)
    with pytest.raises(DecodeError, match=r"cannot be unpacked|another size"):
        unpack(memoryview(packed[:-3]), CHUNK, None)
    with pytest.raises(DecodeError, match="another size"):
        unpack(memoryview(packed + b"more"), CHUNK, None)


def test_a_version_that_is_damaged_says_so() -> None:
    old = Random(4).randbytes(8 * CHUNK)
    with base_of(old) as base:
        assert base.sound(3 * CHUNK, CHUNK)
        spoiled = Base(manifest_of(old[:-1] + b"?"), base.descriptor)
        assert not spoiled.sound(7 * CHUNK, CHUNK)

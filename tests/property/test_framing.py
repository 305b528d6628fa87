"""Frames come out as they went in, however the stream was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepool.errors import DecodeError
from edgepool.transport.framing import FrameBuffer, header

MAX_FRAME_BYTES = 300_000
sizes = st.one_of(st.integers(0, 40), st.integers(0, 5_000), st.integers(60_000, MAX_FRAME_BYTES))
cuts = st.one_of(st.integers(1, 10), st.integers(1, 5_000), st.integers(1, 262_144))


def feed(buffer: FrameBuffer, piece: bytes) -> None:
    space = buffer.space(len(piece))
    assert len(space) > len(piece)
    space[: len(piece)] = piece
    del space
    buffer.received(len(piece))


@given(st.lists(sizes, max_size=12), st.lists(cuts, min_size=1, max_size=20), st.binary(max_size=3))
def test_frames_survive_any_cutting(lengths: list[int], pieces: list[int], rest: bytes) -> None:
    frames = [bytes([i]) * length for i, length in enumerate(lengths)]
    stream = b"".join(header(len(frame)) + frame for frame in frames) + rest
    buffer = FrameBuffer(MAX_FRAME_BYTES)
    found: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        # Small pieces only at first, so that long streams stay fast.
        size = pieces[turn % len(pieces)] if turn < 200 else 262_144
        feed(buffer, stream[at : at + size])
        at, turn = at + size, turn + 1
        while (frame := buffer.next_frame()) is not None:
            found.append(frame)
    assert found == frames
    assert buffer.take_rest() == rest
    feed(buffer, header(1) + b"x")
    assert buffer.next_frame() == b"x"


@given(st.integers(MAX_FRAME_BYTES + 1, 2**32 - 1))
def test_a_length_beyond_the_limit_is_refused_before_its_body(length: int) -> None:
    buffer = FrameBuffer(MAX_FRAME_BYTES)
    feed(buffer, header(1) + b"x" + header(length))
    assert buffer.next_frame() == b"x"
    with pytest.raises(DecodeError, match=str(length)):
        buffer.next_frame()

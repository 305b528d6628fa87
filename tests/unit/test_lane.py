"""The seal of data connections: what was sealed opens once, in its place, under its key."""

from __future__ import annotations

from typing import Any

import pytest

from edgepool.errors import DecodeError
from edgepool.model.transfer import AES_128_GCM, CHACHA20_POLY1305, bitmap_of, chunks_of
from edgepool.transport import lane
from edgepool.transport.lane import (
    FRAME_BYTES,
    HEADER_BYTES,
    LAST,
    LaneKey,
    Opener,
    Sealer,
    choose,
    read_header,
)

HALVES = (b"r" * 32, b"h" * 32)
TERMS: list[Any] = ["network", "holder", "requester", 1, b"root"]


def frames(key: LaneKey, *contents: bytes) -> list[bytes]:
    sealer = Sealer(key)
    return [bytes(sealer.seal(index, memoryview(content), LAST)) for index, content in enumerate(contents)]


def opened(opener: Opener, frame: bytes) -> bytes:
    header = frame[:HEADER_BYTES]
    _, length, _ = read_header(header)
    content = bytearray(length)
    opener.open(header, memoryview(frame)[HEADER_BYTES:], memoryview(content))
    return bytes(content)


@pytest.mark.parametrize("cipher", [AES_128_GCM, CHACHA20_POLY1305])
def test_what_is_sealed_opens_in_order(cipher: str) -> None:
    key = LaneKey(cipher, HALVES, TERMS)
    opener = Opener(LaneKey(cipher, HALVES, TERMS))
    contents = (b"first", b"", bytes(FRAME_BYTES))
    assert [opened(opener, frame) for frame in frames(key, *contents)] == list(contents)


@pytest.mark.parametrize("cipher", [AES_128_GCM, CHACHA20_POLY1305])
def test_no_bit_of_a_frame_can_be_changed(cipher: str) -> None:
    key = LaneKey(cipher, HALVES, TERMS)
    (frame,) = frames(key, b"content")
    for place in range(len(frame)):
        bad = bytearray(frame)
        bad[place] ^= 1
        with pytest.raises(DecodeError):
            Opener(key).open(bytes(bad[:12]), memoryview(bad)[12:], memoryview(bytearray(7)))


def test_frames_cannot_be_left_out_repeated_or_moved() -> None:
    key = LaneKey(AES_128_GCM, HALVES, TERMS)
    first, second, _ = frames(key, b"first", b"second", b"third")
    for order in ((second,), (first, first), (first, second, second)):
        opener = Opener(key)
        for frame in order[:-1]:
            opened(opener, frame)
        with pytest.raises(DecodeError, match=f"frame {len(order) - 1} is not the one"):
            opened(opener, order[-1])


@pytest.mark.parametrize(
    ("halves", "terms"),
    [
        ((HALVES[1], HALVES[0]), TERMS),  # reflected: the sides exchanged
        ((b"R" * 32, HALVES[1]), TERMS),
        ((HALVES[0], b"H" * 32), TERMS),
        *((HALVES, [*TERMS[:at], b"other", *TERMS[at + 1 :]]) for at in range(len(TERMS))),
    ],
)
def test_a_key_is_good_for_one_transfer_only(halves: tuple[bytes, bytes], terms: list[Any]) -> None:
    key, other = LaneKey(AES_128_GCM, HALVES, TERMS), LaneKey(AES_128_GCM, halves, terms)
    assert key.token != other.token
    (frame,) = frames(key, b"content")
    with pytest.raises(DecodeError):
        opened(Opener(other), frame)


def test_a_token_says_nothing_of_the_key_and_differs_by_cipher() -> None:
    tokens = {LaneKey(cipher, HALVES, TERMS).token for cipher in (AES_128_GCM, CHACHA20_POLY1305)}
    assert len(tokens) == 2
    key = LaneKey(CHACHA20_POLY1305, HALVES, TERMS)
    assert key.token not in (key._key, *HALVES)


def test_older_versions_of_the_library_make_the_same_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    key = LaneKey(AES_128_GCM, HALVES, TERMS)
    (frame,) = frames(key, b"content")
    real = key.aead()

    class Older:
        encrypt = staticmethod(real.encrypt)
        decrypt = staticmethod(real.decrypt)

    monkeypatch.setattr(LaneKey, "aead", lambda self: Older())
    assert frames(key, b"content") == [frame]
    assert opened(Opener(key), frame) == b"content"
    with pytest.raises(DecodeError):
        opened(Opener(key), frame[:-1] + b"\0")


def test_a_side_without_instructions_for_aes_gets_chacha(monkeypatch: pytest.MonkeyPatch) -> None:
    both, slow = (AES_128_GCM, CHACHA20_POLY1305), (CHACHA20_POLY1305,)
    monkeypatch.setattr(lane, "ciphers", lambda: both)
    assert (choose(both), choose(slow), choose(("rot13",)), choose(())) == (
        AES_128_GCM,
        CHACHA20_POLY1305,
        "",
        "",
    )
    monkeypatch.setattr(lane, "ciphers", lambda: slow)
    assert choose(both) == CHACHA20_POLY1305


def test_lengths_and_flags_are_bounded() -> None:
    for length, flags in ((FRAME_BYTES + 1, 0), (2**32 - 1, 1), (1, 4)):
        with pytest.raises(DecodeError, match="a frame of"):
            read_header((0).to_bytes(4, "big") + length.to_bytes(4, "big") + flags.to_bytes(4, "big"))


def test_bitmaps_name_chunks() -> None:
    assert chunks_of(bitmap_of({0, 8, 9}, 10), 10) == {0, 8, 9}
    assert chunks_of(b"\xff", 3) == {0, 1, 2}
    for bitmap in (b"", b"\0\0"):
        with pytest.raises(DecodeError):
            chunks_of(bitmap, 8)

"""Structured mutation of MessagePack frames: some by bytes, some by values, all from one generator.

Values are changed inside the decoded tree and encoded again, so the result is well-formed MessagePack
that says something odd; bytes are changed in the frame itself, so the result is odd MessagePack.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

_encode = msgspec.msgpack.Encoder().encode

MAGIC = (
    b"\xdf\xff\xff\xff\xff",  # a map, an array, a string and bytes of four billion
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc1",  # never used
    b"\xc0",
    b"\xc2",
    b"\xd9\xff",
    b"\xd9\x01a",  # a short string, written long
    b"\xcd\x00\x01",  # a small number, written wide
    b"\xcb\x7f\xf8\0\0\0\0\0\0",  # not a number
    b"\xca\x3f\x80\0\0",
    b"\xa3\xed\xa0\x80",  # half of a surrogate pair
    b"\xa1\xff",
    b"\x91" * 40,
    b"\x91" * 2000,
    b"\x81\xa1a",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7,
    b"\xd6\xff\0\0\0\0",  # an extension: a time
    b"\xc7\xff\x01",
    b"\xc4\x00",
    b"\x90",
    b"\xdc\xff\xff",
)

INTEGERS = (
    *(-(2**63), -(2**53) - 1, -(2**31), -2, -1, 0, 1, 2, 3, 4, 16, 17, 29, 30, 31, 127, 128, 255, 256),
    *(65_535, 65_536, 2**20, 2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**50, 2**53, 2**53 + 1, 2**63, 2**64 - 1),
)
TEXTS = ("", "a", "\0", "/", "//", "a/b", " ", "é" * 64, "x" * 64, "x" * 65, "1" * 46, "0" * 40, "f" * 40, "‮")
BYTES = (b"", b"\0", bytes(20), bytes(31), bytes(32), bytes(33), b"\xff" * 32, bytes(64), b"\xff" * 64)
OTHERS: tuple[Any, ...] = (None, True, False, 1.0, [], {}, [[]], {"a": 1}, [None] * 300)

_PART = list[Any]
"""Places in arrays and keys in maps, from the outside in."""


class Seed:
    """One valid frame, with its tree and the paths to all that is in it."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.tree: Any = msgspec.msgpack.decode(frame)
        self.paths: list[_PART] = []
        self._walk(self.tree, [])

    def _walk(self, tree: Any, path: _PART) -> None:
        if path:
            self.paths.append(path)
        if isinstance(tree, list | dict):
            for place, part in enumerate(tree) if isinstance(tree, list) else tree.items():
                self._walk(part, [*path, place])

    def at(self, path: _PART) -> Any:
        """Return what stands at `path`."""
        part = self.tree
        for place in path:
            part = part[place]
        return part


def mutate_bytes(rng: Random, seed: Seed, other: Seed) -> bytes:
    """Return the frame of `seed` with one to four small wounds; some are grafts from `other`."""
    frame = bytearray(seed.frame)
    random = rng.random
    for _ in range((1, 1, 1, 2, 4)[int(random() * 5)]):
        place = int(random() * (len(frame) + 1))
        match int(random() * 7):
            case 0 | 1:
                if place < len(frame):
                    frame[place] = int(random() * 256)
            case 2:
                magic = MAGIC[int(random() * len(MAGIC))]
                frame[place : place + (place & 1)] = magic
            case 3:
                del frame[place : place + 1 + int(random() * 9)]
            case 4:
                start = int(random() * len(other.frame))
                frame[place : place + 1] = other.frame[start : start + 1 + int(random() * 40)]
            case 5:
                frame[place:place] = frame[place : place + 1 + int(random() * 40)]
            case _:
                if place < len(frame):
                    frame[place] = (frame[place] + (1, -1)[place & 1]) & 255
    return bytes(frame)


def mutate_value(rng: Random, seed: Seed, other: Seed) -> bytes:
    """Return the frame of `seed` with one to three values changed, moved, doubled or dropped."""
    tree = seed.tree
    if not seed.paths:
        return _encode(OTHERS[int(rng.random() * len(OTHERS))])
    for _ in range((1, 1, 2, 3)[int(rng.random() * 4)]):
        tree = _with(tree, seed.paths[int(rng.random() * len(seed.paths))], rng, other)
    return _encode(tree)


def _with(tree: Any, path: _PART, rng: Random, other: Seed) -> Any:
    """Return `tree` changed at `path`, or near it if an earlier change took the place away."""
    if isinstance(tree, dict):
        return _with_key(tree, path, rng, other)
    if not isinstance(tree, list) or not tree or not isinstance(path[0], int):
        return tree
    place = min(path[0], len(tree) - 1)
    copy = list(tree)
    if len(path) > 1 and isinstance(copy[place], list | dict):
        copy[place] = _with(copy[place], path[1:], rng, other)
        return copy
    match int(rng.random() * 12):
        case 0:
            del copy[place]
        case 1:
            copy.insert(place, copy[place])
        case 2:
            copy += [copy[place]] * int(rng.random() * 300)
        case 3:
            copy[place] = other.at(other.paths[int(rng.random() * len(other.paths))] if other.paths else [])
        case 4:
            copy[place] = OTHERS[int(rng.random() * len(OTHERS))]
        case _:
            copy[place] = _odd(copy[place], rng)
    return copy


def _with_key(tree: dict[Any, Any], path: _PART, rng: Random, other: Seed) -> dict[Any, Any]:
    """Return the map `tree` changed at the key that `path` begins with: the value, the key, or both gone."""
    key, copy = path[0], dict(tree)
    if key not in copy:
        return copy
    if len(path) > 1 and isinstance(copy[key], list | dict):
        copy[key] = _with(copy[key], path[1:], rng, other)
        return copy
    value = copy.pop(key)
    match int(rng.random() * 4):
        case 0:
            pass
        case 1:
            copy[_odd(key, rng)] = value
        case _:
            copy[key] = _odd(value, rng)
    return copy


def _odd(value: Any, rng: Random) -> Any:
    """Return another value of the same type, likely at an edge."""
    random = rng.random
    match value:
        case bool():
            return not value
        case int():
            if random() < 0.5:
                return INTEGERS[int(random() * len(INTEGERS))]
            return max(-(2**63), min(2**64 - 1, value + int(random() * 7) - 3))
        case str():
            if random() < 0.5 or not value:
                return TEXTS[int(random() * len(TEXTS))]
            place = int(random() * len(value))
            return value[:place] + chr(33 + int(random() * 90)) + value[place + 1 :]
        case bytes():
            if random() < 0.5 or not value:
                return BYTES[int(random() * len(BYTES))]
            place = int(random() * len(value))
            return value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]
        case list():
            if random() < 0.5:
                return list(reversed(value))
            return value[: int(random() * (len(value) + 1))]
    return INTEGERS[int(random() * len(INTEGERS))]

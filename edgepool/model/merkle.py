"""Merkle trees over a block's records (RFC 6962 shape: leaves and nodes hash apart).

A node without a sibling moves up unchanged, so no leaf is ever counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepool.model.crypto import sha256

EMPTY_ROOT = sha256(b"")


def leaf_hash(data: bytes) -> bytes:
    """Return the 32-byte hash of one leaf."""
    return sha256(b"\0" + data)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the 32-byte root over `leaves` (the leaf data, not their hashes)."""
    if not leaves:
        return EMPTY_ROOT
    level = [leaf_hash(leaf) for leaf in leaves]
    while len(level) > 1:
        level = _next_level(level)
    return level[0]


def merkle_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the sibling hashes from leaf `index` up to the root; b"" where there is no sibling."""
    level = [leaf_hash(leaf) for leaf in leaves]
    path = []
    while len(level) > 1:
        sibling = index ^ 1
        path.append(level[sibling] if sibling < len(level) else b"")
        level = _next_level(level)
        index //= 2
    return tuple(path)


def merkle_paths(leaves: Sequence[bytes], indexes: Sequence[int]) -> list[tuple[bytes, ...]]:
    """Return the `merkle_path` of each of `indexes`; every node is hashed once for all of them."""
    levels = [[leaf_hash(leaf) for leaf in leaves]]
    while len(levels[-1]) > 1:
        levels.append(_next_level(levels[-1]))
    return [
        tuple(
            level[sibling] if (sibling := (index >> depth) ^ 1) < len(level) else b""
            for depth, level in enumerate(levels[:-1])
        )
        for index in indexes
    ]


def root_from_path(leaf: bytes, index: int, path: Sequence[bytes]) -> bytes:
    """Return the root that `leaf` at `index` leads to by `path`."""
    node = leaf_hash(leaf)
    for sibling in path:
        if sibling:
            node = sha256(b"\1" + sibling + node) if index & 1 else sha256(b"\1" + node + sibling)
        index //= 2
    return node


def _next_level(level: list[bytes]) -> list[bytes]:
    paired = [sha256(b"\1" + level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return paired + level[len(paired) * 2 :]

"""The machine combination of a task: what Algorithm 1 compares pools by [S3.5]."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Combination = tuple[str, ...]
"""The operations of the machined steps of a route, in their order: the Mg of Liu et al."""


def combination(operations: Sequence[str], outside: Collection[str]) -> Combination:
    """Return the combination of a route: its `operations` without the `outside` ones.

    An outside operation (heat treatment) takes its time and holds no machine [S3.16].
    """
    return tuple(operation for operation in operations if operation not in outside)

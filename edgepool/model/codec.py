"""The one codec: MessagePack arrays by msgspec, typed, bounded and canonical.

Bytes are believed only if they are exactly what we would have written: `encode(decode(b)) == b`.
That rejects wide integers, duplicate keys, extra elements and trailing bytes in one rule, so that
a hash or signature over received bytes means the same to everybody.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar, overload

import msgspec

from edgepool.errors import DecodeError

T = TypeVar("T")

MAX_VALUE_BYTES = 4 * 1024 * 1024
"""No single encoded value (a frame, a block) may be larger than this, in bytes."""

_encoder = msgspec.msgpack.Encoder()


class Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, gc=False):
    """Base of everything that travels or is stored: an immutable, positionally encoded array.

    Such values are trees, never cycles, so the garbage collector need not look through them.
    """


class once(Generic[T]):
    """A property that is worked out when it is first read, of a `Wire` with `dict=True`.

    functools.cached_property takes a lock for that before Python 3.12, which costs more than most hashes.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> once[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> T | once[T]:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._make(instance)
        return value


@lru_cache(maxsize=256)
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def encode(value: Any) -> bytes:
    """Return the canonical MessagePack bytes of `value`."""
    return _encoder.encode(value)


def decode(kind: type[T], data: bytes | memoryview, max_bytes: int = MAX_VALUE_BYTES) -> T:
    """Return the `kind` that `data` encodes.

    Raises DecodeError if `data` is longer than `max_bytes`, is not a valid `kind`, or is not the
    canonical encoding of it.
    """
    if len(data) > max_bytes:
        raise DecodeError(f"{len(data)} bytes, more than the {max_bytes} allowed here")
    try:
        value: T = _decoder(kind).decode(data)  # type: ignore[arg-type]
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors too
        raise DecodeError(f"not a valid {getattr(kind, '__name__', 'value')}: {error}") from None
    if _encoder.encode(value) != data:
        raise DecodeError(f"not the canonical encoding of a {getattr(kind, '__name__', 'value')}")
    return value

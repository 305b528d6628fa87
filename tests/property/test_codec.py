"""The codec, on every value of the model: found by walking `Wire`'s subclasses, made from their types."""

from __future__ import annotations

import importlib
import pkgutil
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgepool.model
from edgepool.errors import DecodeError
from edgepool.model.codec import Wire, decode, encode
from edgepool.model.message import Message, decode_message

Strategy = st.SearchStrategy[Any]

for module in pkgutil.iter_modules(edgepool.model.__path__):
    importlib.import_module(f"edgepool.model.{module.name}")


def kinds_below(kind: type[Wire]) -> list[type[Wire]]:
    return [one for sub in kind.__subclasses__() for one in (sub, *kinds_below(sub))]


KINDS = [kind for kind in kinds_below(Wire) if kind.__module__.startswith("edgepool.model.")]
MESSAGES = typing.get_args(Message)


def bounds_of(metadata: tuple[Any, ...]) -> dict[str, int]:
    names = ("ge", "le", "gt", "lt", "min_length", "max_length")
    return {
        name: getattr(meta, name)
        for meta in metadata
        for name in names
        if isinstance(meta, msgspec.Meta) and getattr(meta, name) is not None
    }


def made_from(hint: Any, bounds: dict[str, int]) -> Strategy:
    """Return a strategy for the values of a type hint, within the bounds of its Meta."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return made_from(arguments[0], {**bounds_of(hint.__metadata__), **bounds})
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([made_from(one, {}) for one in arguments])
    shortest, longest = bounds.get("min_length", 0), bounds.get("max_length", 64)
    if origin is tuple and arguments[-1] is Ellipsis:
        some = st.lists(made_from(arguments[0], {}), min_size=shortest, max_size=min(longest, shortest + 2))
        return some.map(tuple)
    if origin is tuple:
        return st.tuples(*[made_from(one, {}) for one in arguments])
    if hint is bool:
        return st.booleans()
    if hint is type(None):
        return st.none()
    if hint is int:
        low, high = bounds.get("ge", -(2**53)), bounds.get("le", bounds.get("lt", 2**53 + 1) - 1)
        return st.integers(low, high) | st.sampled_from([low, high])
    if hint is str:
        return st.text(min_size=shortest, max_size=longest)
    if hint is bytes:
        return st.binary(min_size=shortest, max_size=longest)
    assert isinstance(hint, type), f"no strategy for {hint}"
    assert issubclass(hint, Wire), f"no strategy for {hint}"
    return STRATEGIES[hint]


def values_of(kind: type[Wire]) -> Strategy:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {name: made_from(hints[name], {}) for name in kind.__struct_fields__}
    return st.builds(kind, **fields)


STRATEGIES: dict[type[Wire], Strategy] = {
    kind: st.deferred(lambda kind=kind: values_of(kind)) for kind in KINDS
}
ANY_VALUE: Strategy = st.sampled_from(KINDS).flatmap(STRATEGIES.__getitem__)

few = settings(max_examples=8, deadline=None)
many = settings(max_examples=200, deadline=None)


def decoded(kind: Any, data: bytes) -> Any:
    """Return the value, or None if the bytes are refused; any other error fails the test."""
    try:
        return decode(kind, data)
    except DecodeError:
        return None


def test_all_parts_of_the_model_are_found() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert {"DataKey", "SignedRecord", "Genesis", "CertifiedBlock", "OfferProof", "TransferRequest"} <= names
    assert set(MESSAGES) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_encoded_is_decoded_as_it_was(kind: type[Wire]) -> None:
    @few
    @given(STRATEGIES[kind])
    def round_trip(value: Wire) -> None:
        data = encode(value)
        assert decode(kind, data) == value
        assert decode(kind, memoryview(data)) == value
        assert encode(decode(kind, data)) == data
        with pytest.raises(DecodeError):
            decode(kind, data, max_bytes=len(data) - 1)

    round_trip()


@many
@given(st.sampled_from(MESSAGES).flatmap(STRATEGIES.__getitem__))
def test_message_decodes_as_the_kind_that_it_is(message: Message) -> None:
    again = decode_message(encode(message))
    assert type(again) is type(message)
    assert again == message


@many
@given(ANY_VALUE, st.data())
def test_changed_byte_is_refused_or_means_something_else(value: Wire, data: st.DataObject) -> None:
    encoded = encode(value)
    place = data.draw(st.integers(0, len(encoded) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != encoded[place]))
    changed = encoded[:place] + bytes([byte]) + encoded[place + 1 :]
    added = encoded[:place] + bytes([byte]) + encoded[place:]
    removed = encoded[:place] + encoded[place + 1 :]
    for other in (changed, added, removed):
        assert other == encoded or decoded(type(value), other) != value


@many
@given(ANY_VALUE, st.binary(min_size=1, max_size=8))
def test_bytes_behind_a_value_are_refused(value: Wire, tail: bytes) -> None:
    assert decoded(type(value), encode(value) + tail) is None


@many
@given(ANY_VALUE, st.data())
def test_cut_off_value_is_refused(value: Wire, data: st.DataObject) -> None:
    encoded = encode(value)
    assert decoded(type(value), encoded[: data.draw(st.integers(0, len(encoded) - 1))]) is None


# --- non-canonical encodings: the same value, written in another way


def pack(thing: Any, widen: list[int]) -> bytes:
    """Encode lists, texts, bytes and integers as MessagePack; the widen[0]-th of them needlessly wide.

    Counts widen[0] down as it goes; what is left tells how many there were.
    """
    widen[0] -= 1
    wide = widen[0] == -1
    if thing is None or isinstance(thing, bool):
        widen[0] += 1
        return encode(thing)
    if isinstance(thing, int):
        if wide:
            return b"\xd3" + thing.to_bytes(8, "big", signed=True)
        return encode(thing)
    if isinstance(thing, str | bytes):
        raw = thing.encode() if isinstance(thing, str) else thing
        if wide:
            return (b"\xdb" if isinstance(thing, str) else b"\xc6") + len(raw).to_bytes(4, "big") + raw
        return encode(thing)
    assert isinstance(thing, list)
    narrow = encode([None] * len(thing))[: -len(thing) or None]
    head = b"\xdd" + len(thing).to_bytes(4, "big") if wide else narrow
    return head + b"".join(pack(one, widen) for one in thing)


@many
@given(ANY_VALUE, st.data())
def test_wider_form_than_needed_is_refused(value: Wire, data: st.DataObject) -> None:
    encoded = encode(value)
    plain = msgspec.msgpack.decode(encoded)
    left = [2**31]
    assert pack(plain, left) == encoded
    count = 2**31 - left[0]
    wide = pack(plain, [data.draw(st.integers(0, count - 1))])
    assert wide == encoded or decoded(type(value), wide) is None


@many
@given(ANY_VALUE, st.data())
def test_extra_or_missing_fields_are_refused(value: Wire, data: st.DataObject) -> None:
    plain = msgspec.msgpack.decode(encode(value))
    extra = data.draw(st.none() | st.integers() | st.text(max_size=4), label="extra")
    if not isinstance(extra, int) or -(2**63) <= extra < 2**64:
        assert decoded(type(value), encode([*plain, extra])) is None
    assert decoded(type(value), encode(plain[:-1])) is None


@many
@given(ANY_VALUE)
def test_map_in_the_place_of_an_array_is_refused(value: Wire) -> None:
    plain = msgspec.msgpack.decode(encode(value))
    names = type(value).__struct_fields__
    assert (
        decoded(type(value), encode(dict(zip(names, plain[len(plain) - len(names) :], strict=True)))) is None
    )


# --- bytes from anywhere


@many
@given(st.sampled_from([*KINDS, Message]), st.binary(max_size=512))
def test_random_bytes_raise_nothing_but_decode_errors(kind: Any, data: bytes) -> None:
    decoded(kind, data)


@many
@given(ANY_VALUE, st.data())
def test_scrambled_values_raise_nothing_but_decode_errors(value: Wire, data: st.DataObject) -> None:
    scrambled = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(scrambled) - 1))
        scrambled[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3)) or b"\xc0"
    decoded(type(value), bytes(scrambled))
    decoded(Message, bytes(scrambled))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x92\xa4ping\xcf" + b"\xff" * 8,
        b"\x92\xa4ping\xcb" + bytes(8),
        b"\x92\xa4\xff\xfe\xfd\xfc\x01",
        b"\xc1",
    ],
    ids=lambda data: data[:6].hex(),
)
def test_traps_are_refused_at_once(data: bytes) -> None:
    for kind in [*KINDS, Message]:
        with pytest.raises(DecodeError):
            decode(kind, data)

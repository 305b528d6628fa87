"""Codes to join: what was written is read, and nothing else is."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepool.errors import DecodeError, LocalError
from edgepool.model.ids import format_address
from edgepool.transport.joincode import (
    FINGERPRINT_BYTES,
    ID_BYTES,
    SECRET_BYTES,
    JoinCode,
    read_code,
    write_code,
)

LETTERS = string.ascii_uppercase + "234567"


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}\.[a-z]{2,5}", fullmatch=True),
)
addresses = st.builds(format_address, hosts, st.integers(0, 65535))
codes = st.builds(
    JoinCode,
    st.lists(addresses, min_size=1, max_size=4).map(tuple),
    exactly(FINGERPRINT_BYTES),
    exactly(ID_BYTES),
    exactly(SECRET_BYTES),
)


@given(codes)
def test_a_code_is_one_word_that_says_what_was_written(code: JoinCode) -> None:
    text = write_code(code)
    assert set(text) <= set(LETTERS)
    assert read_code(text) == code
    assert read_code(f"  {text.lower()}\n") == code
    assert "secret" not in repr(code)


@given(codes, st.data())
def test_any_altered_character_is_refused(code: JoinCode, data: st.DataObject) -> None:
    text = write_code(code)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([one for one in LETTERS + "01=-" if one != text[at]]))
    with pytest.raises(LocalError, match="copy it again"):
        read_code(text[:at] + other + text[at + 1 :])


@given(codes, st.data())
def test_lost_doubled_and_swapped_characters_are_refused(code: JoinCode, data: st.DataObject) -> None:
    text = write_code(code)
    at = data.draw(st.integers(0, len(text) - 2))
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    for wrong in (text[:at] + text[at + 1 :], text[: at + 1] + text[at:], swapped):
        if wrong != text:
            with pytest.raises(LocalError):
                read_code(wrong)


@given(st.text(max_size=200))
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    with pytest.raises(LocalError):
        read_code(text)


def test_a_code_needs_one_to_four_addresses_that_are_some() -> None:
    rest = (bytes(FINGERPRINT_BYTES), bytes(ID_BYTES), bytes(SECRET_BYTES))
    good = format_address(str(ipaddress.IPv4Address(1)), 1)
    for wrong in ((), (good,) * 5, ("/ip4/nowhere/tcp/1",)):
        with pytest.raises(DecodeError):
            write_code(JoinCode(wrong, *rest))

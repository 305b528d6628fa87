"""What peers and conduits say to each other: one form for each word, and nothing else is taken."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepool.errors import DecodeError
from edgepool.model.codec import encode
from edgepool.model.ids import peer_id_from_public_key
from edgepool.model.lineage import MAX_LINE, KeyFollows
from edgepool.transport.conduitwire import (
    MAX_ANSWER_BYTES,
    MAX_FRAME_BYTES,
    Ask,
    AskFormer,
    Beat,
    BeatAnswer,
    Declined,
    FormerKeys,
    FromConduit,
    FromPeer,
    Granted,
    Offered,
    Reserve,
    Reserved,
    from_conduit,
    from_peer,
)

numbers = st.integers(0, 2**53)
peers = st.binary(min_size=32, max_size=32).map(peer_id_from_public_key)
tokens = st.binary(min_size=32, max_size=32)
reasons = st.text(max_size=60)
signatures = st.binary(min_size=64, max_size=64)
lines = st.lists(st.builds(KeyFollows, peers, peers, signatures, signatures), max_size=MAX_LINE).map(tuple)
of_peers = st.one_of(
    st.builds(Reserve), st.builds(Ask, numbers, peers), st.builds(Beat, numbers), st.builds(AskFormer)
)
of_conduits = st.one_of(
    st.builds(Reserved, reasons),
    st.builds(Granted, numbers, tokens),
    st.builds(Declined, numbers, reasons),
    st.builds(Offered, peers, tokens),
    st.builds(BeatAnswer, numbers),
    st.builds(FormerKeys, lines),
)


@given(of_peers, of_conduits)
def test_each_side_takes_what_the_other_says_and_not_what_it_says_itself(
    mine: FromPeer, theirs: FromConduit
) -> None:
    assert from_peer(encode(mine)) == mine
    assert from_conduit(encode(theirs)) == theirs
    assert len(encode(mine)) <= MAX_FRAME_BYTES
    assert len(encode(theirs)) <= MAX_ANSWER_BYTES
    with pytest.raises(DecodeError):
        from_conduit(encode(mine))
    with pytest.raises(DecodeError):
        from_peer(encode(theirs))


@given(st.one_of(of_peers, of_conduits).map(encode), st.data())
def test_no_flipped_bit_cut_or_tail_is_taken_for_the_same_word(frame: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, 8 * len(frame) - 1))
    flipped = bytearray(frame)
    flipped[place // 8] ^= 1 << place % 8
    for other in (bytes(flipped), frame[:-1], frame + b"\0", frame + bytes(MAX_ANSWER_BYTES)):
        for read in (from_peer, from_conduit):
            try:
                word = read(other)
            except DecodeError:
                continue
            assert encode(word) == other
            assert other != frame


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_exactly_a_word(frame: bytes) -> None:
    for read in (from_peer, from_conduit):
        try:
            assert encode(read(frame)) == frame
        except DecodeError:
            continue


def test_every_word_is_tried_here() -> None:
    made = {Reserve, Ask, Beat, AskFormer, Reserved, Granted, Declined, Offered, BeatAnswer, FormerKeys}
    assert made == {*get_args(FromPeer), *get_args(FromConduit)}

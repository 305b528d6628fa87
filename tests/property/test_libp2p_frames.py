"""Whatever bytes come over libp2p: a frame is a value in its one encoding, or it is refused; all survive."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p_words import EXAMPLES

from edgepool.errors import DecodeError
from edgepool.model.asking import Answer, No, Question
from edgepool.model.codec import decode, encode
from edgepool.peer.foreign import Conversation
from edgepool.transport.framing import header


def test_every_kind_is_tried() -> None:
    for union, examples in EXAMPLES.items():
        assert {type(example) for example in examples} == set(get_args(union) or (union,))


@pytest.mark.parametrize("union", list(EXAMPLES), ids=str)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_frame_is_canonical_or_refused(union: type, data: st.DataObject) -> None:
    body = bytearray(encode(data.draw(st.sampled_from(EXAMPLES[union]))))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        value = decode(union, bytes(body))
    except DecodeError:
        return
    assert encode(value) == body


class Sink:
    aborted = False

    def write(self, data: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(EXAMPLES[Question]).map(encode)), max_size=4)
)
def test_a_conversation_survives_whatever_is_said(bodies: list[bytes]) -> None:
    async def converse() -> None:
        async def answer(question: Question) -> Answer:
            return No("no")

        conversation = Conversation(answer)
        conversation.connection_made(Sink())  # type: ignore[arg-type]
        for body in bodies:
            said = header(len(body)) + body
            conversation.get_buffer(len(said))[: len(said)] = said
            conversation.buffer_updated(len(said))
            await asyncio.sleep(0)
        conversation.connection_lost(None)

    asyncio.run(converse())

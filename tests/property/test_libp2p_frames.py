"""Whatever bytes come over libp2p: a frame is a value in its one encoding, or it is refused; all survive."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepool.errors import DecodeError
from edgepool.model.asking import Answer, Find, No, Offers, PoolList, Pools, ProofFile, Prove, Question
from edgepool.model.channelproof import MembershipProof
from edgepool.model.codec import decode, encode
from edgepool.model.ids import ChainId
from edgepool.model.twin import DataKey
from edgepool.peer.foreign import Conversation
from edgepool.transport.framing import header
from edgepool.transport.libp2p_child import messages
from edgepool.transport.libp2p_child.messages import FromChild, ToChild
from edgepool.transport.proofdoor import ChannelHello

CHAIN = ChainId("0" * 40)
EXAMPLES: dict[object, list[object]] = {
    Question: [Pools(), Find(DataKey("P", "model"), 0, 5_000), Prove(CHAIN, 1, 0)],
    Answer: [PoolList(()), Offers(()), ProofFile(b"EPPROOF"), No("because")],
    ChannelHello: [ChannelHello(bytes(32))],
    MembershipProof: [MembershipProof(b"certificate", bytes(64))],
    ToChild: [
        messages.Begin(bytes(32), ("/ip4/127.0.0.1/tcp/0",), ("/x",), 1, 1, 1, 1, 0, False, True),
        messages.Reserve("1" * 52),
        messages.Dial(2, "1" * 52, "", "/x", 1),
        messages.Publish("topic", b"news"),
        messages.Proven("1" * 52),
        messages.Disconnect("1" * 52),
        messages.Beat(1),
        messages.Data(2, b"data"),
        messages.Credit(2, 1),
        messages.Finish(2),
        messages.Reset(2, "because"),
    ],
    FromChild: [
        messages.Listening(("/ip4/127.0.0.1/tcp/1",)),
        messages.ListenFailed("/ip4/127.0.0.1/tcp/1", 98),
        messages.Accepted(1, "1" * 52, "/x", False),
        messages.Opened(2, True),
        messages.Counted("refused_handshake"),
        messages.Beating(1, 1, 1, 1, 1),
        messages.Data(1, b"data"),
        messages.Credit(1, 1),
        messages.Finish(1),
        messages.Reset(1, ""),
    ],
}


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

"""Questions on a stream: one at a time, bounded, and nothing but questions."""

from __future__ import annotations

import asyncio

import pytest

from edgepool.model.asking import Answer, No, Pools, Question
from edgepool.model.codec import encode
from edgepool.peer.foreign import Conversation
from edgepool.transport.framing import header


class Stream:
    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.state = "open"

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.state = "aborted"

    def close(self) -> None:
        self.state = "closed"


class Desk:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self.stream = Stream()
        self.conversation = Conversation(self._answer)
        self.conversation.connection_made(self.stream)  # type: ignore[arg-type]

    async def _answer(self, question: Question) -> Answer:
        self.asked.append(question)
        return await self.answers.get()

    def hear(self, data: bytes) -> None:
        self.conversation.get_buffer(len(data))[: len(data)] = data
        self.conversation.buffer_updated(len(data))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def framed(body: bytes) -> bytes:
    return header(len(body)) + body


QUESTION = framed(encode(Pools()))


async def test_questions_are_answered_one_after_the_other_and_no_more_is_read_meanwhile() -> None:
    desk = Desk()
    desk.hear(QUESTION * 2)
    await turns()
    assert desk.asked == [Pools()]
    assert not desk.stream.reading
    for number in (1, 2):
        desk.answers.put_nowait(No(str(number)))
        await turns()
    assert desk.asked == [Pools()] * 2
    assert desk.stream.written == framed(encode(No("1"))) + framed(encode(No("2")))
    assert desk.stream.reading
    desk.conversation.eof_received()
    assert desk.stream.state == "closed"


async def test_what_was_asked_before_the_end_is_still_answered() -> None:
    desk = Desk()
    desk.hear(QUESTION)
    desk.conversation.eof_received()
    assert desk.stream.state == "open"
    await turns()
    desk.answers.put_nowait(No("late"))
    await turns()
    assert desk.stream.written == framed(encode(No("late")))
    assert desk.stream.state == "closed"


@pytest.mark.parametrize(
    "garbage", [framed(b"\xc1"), framed(encode(No("x"))), framed(b""), b"\x00\x10\x00\x00"]
)
async def test_what_is_no_question_ends_the_stream(garbage: bytes) -> None:
    desk = Desk()
    desk.hear(garbage)
    await turns()
    assert desk.stream.state == "aborted"
    assert desk.asked == []


async def test_nobody_is_answered_after_the_stream_is_gone() -> None:
    desk = Desk()
    desk.hear(QUESTION)
    await turns()
    desk.conversation.connection_lost(None)
    desk.answers.put_nowait(No("too late"))
    await turns()
    assert desk.stream.written == b""

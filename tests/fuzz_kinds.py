"""Which kinds there are on the wire and in records, and which of them a run has seen."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import get_args

from edgepool.model.block import Block
from edgepool.model.message import (
    Blocks,
    ConfirmAnswer,
    Message,
    Polka,
    Proposal,
    QueryAnswer,
    Records,
)
from edgepool.model.record import Body, SignedRecord

MESSAGES = tuple(kind.__name__ for kind in get_args(Message))
BODIES = tuple(kind.__name__ for kind in get_args(Body))


def records_in(message: Message) -> Iterator[SignedRecord]:
    """Yield the records that a message carries, in whatever they are wrapped."""
    match message:
        case Records():
            yield from message.records
        case Proposal() | Polka():
            yield from _of(message.block)
        case Blocks():
            for certified in message.blocks:
                yield from _of(certified.block)
        case QueryAnswer():
            yield from (offer.record for offer in message.offers)
        case ConfirmAnswer(record=record, policy=policy):
            yield from [record] if record is not None else []
            yield from [policy.record] if policy is not None else []


def kinds_in(message: Message) -> Iterator[str]:
    """Yield the names of the kinds of a message and of the records in it."""
    yield type(message).__name__
    for signed in records_in(message):
        yield type(signed.record.body).__name__


def missing(seen: Collection[str]) -> list[str]:
    """Return the kinds of messages and of records' bodies that are not among `seen`."""
    return [kind for kind in (*MESSAGES, *BODIES) if kind not in seen]


def _of(block: Block) -> tuple[SignedRecord, ...]:
    return block.records

"""What an API's answers are taken as; whatever else comes is no peer of this version."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from edgepool.errors import Unavailable
from edgepool.gateway.access import ENDPOINT_FILE

_T = TypeVar("_T")


def answer_as(kind: type[_T], value: Any) -> _T:
    """Return an answer as a `kind`; Unavailable if it is none."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise foreign() from None


def foreign() -> Unavailable:
    """Return what to raise when something else answers."""
    return Unavailable(
        f"what answers at the address in {ENDPOINT_FILE} is no peer of this version: "
        "restart the peer, which writes that file anew"
    )

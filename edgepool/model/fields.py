"""The kinds of fields that values on the wire are made of, each with its bounds.

Times are milliseconds since 1970 UTC, durations whole minutes, lengths micrometres: there are no
floats on chain, so that every member computes the same.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.model.crypto import SIGNATURE_BYTES
from edgepool.model.ids import ChainId, PeerId

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=256)]
PeerText = Annotated[PeerId, Meta(min_length=46, max_length=64)]
MaybePeer = Annotated[PeerId, Meta(max_length=64)]
"""A peer id, or '' for nobody."""
ChainText = Annotated[ChainId, Meta(min_length=40, max_length=40)]
TimeMs = Annotated[int, Meta(ge=0, le=2**53)]
Minutes = Annotated[int, Meta(ge=0, le=10_000_000)]
OperationNumber = Annotated[int, Meta(ge=0, le=100_000)]
SizeBytes = Annotated[int, Meta(ge=0, le=2**50)]
Percent = Annotated[int, Meta(ge=0, le=100)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
MaybeHash = Annotated[bytes, Meta(max_length=32)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
MaybeSignature = Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)]
Signed64 = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Height = Annotated[int, Meta(ge=1, le=2**53)]
KnownHeight = Annotated[int, Meta(ge=0, le=2**53)]
"""A height, or 0 before the first block."""
Round = Annotated[int, Meta(ge=0, le=2**31)]

"""Twin data: what is exchanged [S3.2], and the manifest by which it is checked [S3.8].

Data stays with its owner; the chain holds the root of its manifest. The manifest names the BLAKE3
hash of every chunk, so each chunk is checked on arrival, from whomever it comes.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgepool.errors import DecodeError, LocalError
from edgepool.model.codec import Wire, encode
from edgepool.model.crypto import data_hash
from edgepool.model.fields import Hash

DATA_KINDS: dict[str, str] = {
    "features": "task information: manufacturing features and sequence (here: the G-code)",
    "requirements": "task information: accuracy requirements of geometric dimensions",
    "model": "model information: the triangulated part model as it should be",
    "error": "model information: deviations of the part as made, measured against the model",
    "surface": "model information: measured points of the surface",
    "cases": "historical data: similar manufacturing cases",
    "equipment": "historical data: equipment status (force and temperature series)",
    "decisions": "historical data: manufacturing decision cases",
    "control": "historical data: process-control cases",
    "tools": "historical data: tool status cases",
}
"""The kinds of data of the paper's Table 1, by the short name that keys use. Others are allowed."""

MAX_CHUNKS = 65536
MIN_CHUNK_BYTES = 1024 * 1024


class DataKey(Wire, order=True, frozen=True):
    """Names data: a part (or another asset) and a kind of data, written 'PTVA10212-03/model'."""

    part: Annotated[str, Meta(min_length=1, max_length=64)]
    kind: Annotated[str, Meta(min_length=1, max_length=32)]

    def __str__(self) -> str:
        return f"{self.part}/{self.kind}"

    @classmethod
    def parse(cls, text: str) -> DataKey:
        """Return the key written as 'PART/KIND'; LocalError says what is wrong with it."""
        part, slash, kind = text.rpartition("/")
        key = cls(part, kind)
        problem = key.problem()
        if not slash or problem:
            why = problem if slash else "there is no '/' in it"
            raise LocalError(
                f"'{text[:80]}' is not a data key ({why}): write PART/KIND, such as PTVA10212-03/model"
            )
        return key

    def problem(self) -> str:
        """Say what is wrong with this key, or return '' if nothing is."""
        return _name_problem("part", self.part, 64) or _name_problem("kind", self.kind, 32)


def _name_problem(name: str, text: str, longest: int) -> str:
    if not text:
        return f"the {name} is empty"
    if len(text) > longest:
        return f"the {name} has more than {longest} characters"
    if not text.isprintable() or "/" in text or text != text.strip():
        return f"the {name} has a slash, a control character or outer spaces"
    return ""


class Manifest(Wire, frozen=True):
    """The shape of one version of data: its size in bytes and the BLAKE3 hash of each chunk.

    Every chunk but the last has `chunk_bytes` bytes. Empty data has no chunks.
    """

    size_bytes: Annotated[int, Meta(ge=0, le=2**50)]
    chunk_bytes: Annotated[int, Meta(ge=1024, le=2**34)]
    chunks: Annotated[tuple[Hash, ...], Meta(max_length=MAX_CHUNKS)]

    @property
    def root(self) -> bytes:
        """The 32-byte hash that stands for the data on chain."""
        return data_hash(b"edgepool/1/manifest\0" + encode(self))

    def check(self) -> None:
        """Raise DecodeError unless the number of chunks fits the size."""
        if len(self.chunks) != -(-self.size_bytes // self.chunk_bytes):
            raise DecodeError("a manifest whose number of chunks does not fit its size")

    def chunk_size_bytes(self, index: int) -> int:
        """Return how many bytes chunk `index` has."""
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)


def small_manifest(data: bytes | memoryview) -> Manifest:
    """Return the manifest that whoever publishes `data`, of at most one chunk, makes of it."""
    return Manifest(len(data), MIN_CHUNK_BYTES, (data_hash(data),) if len(data) else ())


def chunk_bytes_for(size_bytes: int) -> int:
    """Return the chunk size for data of `size_bytes`: 1 MiB, more where there would be too many."""
    chunk = MIN_CHUNK_BYTES
    while -(-size_bytes // chunk) > MAX_CHUNKS:
        chunk *= 2
    return chunk

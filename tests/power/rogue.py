"""A holder whose data plane lies: the real peer with its real certificate, and sending code of its own.

    python tests/power/rogue.py FOLDER

runs the peer of FOLDER as 'edgepool run' does. What it does to whoever fetches from it stands in the file
'behaviour' in that folder, which is read again for each chunk: one of BEHAVIOURS.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edgepool.cli.main import main
from edgepool.model.transfer import TransferAccept
from edgepool.model.twin import Manifest
from edgepool.transport import session
from edgepool.transport.lane import FRAME_BYTES, LAST, Sealer
from edgepool.transport.serving import Serving

STALL_S = 60.0
BEHAVIOURS = (
    "honest",
    "corrupt",
    "truncated",
    "too_long",
    "too_short",
    "endless",
    "unasked",
    "stalled",
    "trickle",
    "garbage",
    "reset",
    "other_manifest",
    "other_size",
    "huge_chunks",
    "never_answers",
)
_behaviour = Path()


def behaviour() -> str:
    with suppress(OSError):
        return _behaviour.read_text().strip()
    return "honest"


class Liar(Serving):
    """Sends chunks as its folder says."""

    def _send_chunk(self, sealer: Sealer, plain: memoryview, index: int) -> None:
        connection = self._connection
        assert connection is not None
        content = bytearray(self._chunk(index))
        match behaviour():
            case "corrupt":
                content[len(content) // 2] ^= 1
            case "truncated":
                connection.sendall(sealer.seal(index, memoryview(content)[:1000], 0)[:500])
                connection.shutdown(socket.SHUT_RDWR)
                return
            case "too_long":
                content += bytes(1000)
            case "too_short":
                content = content[:-1000]
            case "endless":
                piece = memoryview(bytes(FRAME_BYTES))
                while True:
                    connection.sendall(sealer.seal(index, piece, 0))
            case "unasked":
                index = (index + 7) % len(self.source.manifest.chunks)
                content = bytearray(self._chunk(index))
            case "stalled":
                threading.Event().wait(STALL_S)
            case "trickle":
                frame = bytes(sealer.seal(index, memoryview(content)[:FRAME_BYTES], 0))
                for byte in frame:
                    connection.sendall(bytes([byte]))
                    threading.Event().wait(0.05)
            case "garbage":
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" * 50_000)
            case "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
        for start in range(0, len(content), FRAME_BYTES):
            piece = memoryview(content)[start : start + FRAME_BYTES]
            flags = LAST if start + FRAME_BYTES >= len(content) else 0
            connection.sendall(sealer.seal(index, piece, flags))
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._sent, len(content))

    def _chunk(self, index: int) -> bytes:
        manifest = self.source.manifest
        with self.source.path.open("rb") as file:
            file.seek(index * manifest.chunk_bytes)
            return file.read(manifest.chunk_size_bytes(index))


def answer(session: Any, message: Any, say: Any) -> None:
    """Answer a requester, perhaps with another manifest than was confirmed, or not at all."""
    lie = behaviour()
    if isinstance(message, TransferAccept) and message.manifest is not None:
        manifest = message.manifest
        if lie == "other_manifest":
            chunks = (bytes(32), *manifest.chunks[1:])
            message = replace(message, manifest=Manifest(manifest.size_bytes, manifest.chunk_bytes, chunks))
        elif lie == "other_size":
            size_bytes = manifest.size_bytes - 1
            message = replace(message, manifest=Manifest(size_bytes, manifest.chunk_bytes, manifest.chunks))
        elif lie == "huge_chunks":
            message = replace(message, manifest=Manifest(2**40, 2**34, manifest.chunks))
        elif lie == "never_answers":
            return
    say(session, message)


def be_rogue(folder: Path) -> None:
    """Take the place of the product's sending code in this process, and run the peer."""
    global _behaviour
    _behaviour = folder / "behaviour"
    honest = session.Session._answer
    session.Serving = Liar  # type: ignore[misc]
    session.Session._answer = lambda one, message: answer(  # type: ignore[method-assign]
        one, message, honest
    )
    sys.argv = ["edgepool", "run", str(folder), "--json"]
    main()


if __name__ == "__main__":
    be_rogue(Path(sys.argv[1]))

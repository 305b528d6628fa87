"""What is moved in a measurement: bytes that nobody can compress, and the folders of who moves them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from edgepool.bench.material import NETWORK
from edgepool.gateway.setup import PeerPlan, make_peer_folder

MIB = 1024 * 1024
GIB = 1024 * MIB
_PIECE_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True)
class Data:
    """A file of `size_bytes` and its BLAKE3 digest, in hex."""

    path: Path
    size_bytes: int
    digest: str


def make_data(path: Path, size_bytes: int, seed: int = 0) -> Data:
    """Write a file of bytes without any pattern, the same for the same seed; OSError if there is no room."""
    stream = Cipher(algorithms.AES(seed.to_bytes(32, "big")), modes.CTR(bytes(16))).encryptor()
    zeros, piece = bytes(_PIECE_BYTES), bytearray(_PIECE_BYTES + 15)
    hashing = blake3()
    with path.open("wb", buffering=0) as file:
        for offset in range(0, size_bytes, _PIECE_BYTES):
            count = stream.update_into(memoryview(zeros)[: size_bytes - offset], piece)
            hashing.update(memoryview(piece)[:count])
            file.write(memoryview(piece)[:count])
    return Data(path, size_bytes, hashing.hexdigest())


def make_files(folder: Path, count: int, size_bytes: int) -> Data:
    """Write so many files of so many bytes into `folder`; the digest is of all in the order of names."""
    folder.mkdir()
    whole = make_data(folder.with_suffix(".whole"), count * size_bytes, seed=count)
    with whole.path.open("rb") as source:
        for number in range(count):
            (folder / f"{number:06}").write_bytes(source.read(size_bytes))
    whole.path.unlink()
    return Data(folder, whole.size_bytes, whole.digest)


def make_folder(folder: Path) -> Path:
    """Make a folder, and return it."""
    folder.mkdir()
    return folder


def files_of(path: Path) -> list[Path]:
    """Return the files of a folder by name, or `path` if it is a file."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def make_sides(folder: Path, *names: str) -> list[Path]:
    """Make the folder of a peer for each name, all of one authority; return them."""
    for name in names:
        make_peer_folder(folder / name, PeerPlan(name, NETWORK), folder / "authority")
    return [folder / name for name in names]


def memory_bytes(what: str) -> int:
    """Return this process's 'VmRSS' (resident now) or 'VmHWM' (the most since `forget_peak`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak() -> None:
    """Let 'VmHWM' begin at what is resident now."""
    descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
    try:
        os.write(descriptor, b"5")
    finally:
        os.close(descriptor)

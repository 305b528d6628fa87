"""The file in which a peer's owner names whom it lets in no more, whatever any chain says [S3.6].

`identity.revoked`: a peer id on each line, '#' before remarks. It is read at the start and when it changes.
"""

from __future__ import annotations

import logging
from pathlib import Path

from edgepool.config import PeerSettings
from edgepool.errors import ConfigError, DecodeError
from edgepool.model.ids import PeerId, public_key_of
from edgepool.transport.keyfiles import MAX_KEY_FILE_BYTES, read_key_bytes

_log = logging.getLogger(__name__)


class BarredFile:
    """The file of one peer; `peers` are those that it names, as far as it was readable last.

    ConfigError if it is unfit at the start.
    """

    def __init__(self, settings: PeerSettings) -> None:
        self._path = settings.path(settings.identity.revoked)
        self._seen = self._changed_at()
        self.peers = _read(self._path)

    def look(self) -> bool:
        """Read the file again if it was changed; say whether others are barred now.

        If it is unfit a warning says so, and whoever was barred stays so.
        """
        seen = self._changed_at()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            before, self.peers = self.peers, _read(self._path)
        except ConfigError as error:
            _log.warning("nobody else is barred by this peer's own file: %s", error)
            return False
        return self.peers != before

    def _changed_at(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_size


def _read(path: Path) -> tuple[PeerId, ...]:
    """Return the peers that a file names, none if it is not there; ConfigError if it is unfit."""
    if not path.exists():
        return ()
    raw = read_key_bytes(path, ConfigError)
    if len(raw) >= MAX_KEY_FILE_BYTES:
        raise ConfigError(f"{path} has {MAX_KEY_FILE_BYTES} bytes or more, and would not be read to its end")
    try:
        lines = [line.partition("#")[0].strip() for line in raw.decode().splitlines()]
        for line in filter(None, lines):
            public_key_of(PeerId(line))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8; it has a peer id on each line") from None
    except DecodeError as error:
        raise ConfigError(f"{path}: {error}; it has a peer id on each line") from None
    return tuple(PeerId(line) for line in lines if line)

"""Commands in processes of their own, as people give them.

The first of each kind begins as `python -m edgepool` does. Most of the time of a command goes into loading
the program, and tests ask the same again and again: so the later ones are forked from a process that has
loaded it and done nothing else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

LOADED = Path(__file__).with_name("loaded_program.py")
TIMEOUT_S = 180.0
PATIENCE_S = 90.0
LOOK_EVERY_S = 0.1


class LoadedProgram:
    """A process that has loaded the program, and forks for each command."""

    def __init__(self, prelude: str = "") -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, LOADED, str(theirs.fileno()), prelude]
            # It ends by itself, as soon as our end of the socket is closed.
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.wait(TIMEOUT_S)

    def run(self, words: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        asked = json.dumps({"words": words, "env": dict(env), "cwd": os.getcwd()}).encode()
        reader, writer = socket.socketpair()
        with TemporaryFile() as out, TemporaryFile() as err, reader:
            with writer:
                socket.send_fds(self._ours, [asked], [out.fileno(), err.fileno(), writer.fileno()])
            code = _ended(reader, words)
            out.seek(0)
            err.seek(0)
            said, complaints = out.read().decode(), err.read().decode()
        return subprocess.CompletedProcess(words, code, said, complaints)


def _ended(reports: socket.socket, words: list[str]) -> int:
    """Return the exit code of a command, which is killed if it does not end."""
    reports.settimeout(TIMEOUT_S)
    with reports.makefile() as lines:
        pid = int(lines.readline())
        try:
            return int(lines.readline())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{words} has not ended") from None


_loaded: dict[str, LoadedProgram] = {}
_seen = set[tuple[str, ...]]()


def run_command(
    *arguments: object, prelude: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; the `prelude` is Python that runs before it."""
    words = [str(one) for one in arguments]
    kind = (prelude, *(word for word in words[:2] if re.fullmatch("[a-z][a-z-]*", word)))
    env = os.environ if env is None else env
    if kind in _seen:
        if prelude not in _loaded:
            _loaded[prelude] = LoadedProgram(prelude)
        return _loaded[prelude].run(words, env)
    _seen.add(kind)
    command = [sys.executable, "-m", "edgepool", *words]
    if prelude:
        command[1:3] = ["-c", f"{prelude}; from edgepool.cli.main import main; main()"]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=env)


def edgepool(*arguments: object, code: int = 0) -> str:
    """Run a command to its end; return what it printed, or complained of if it is to fail with `code`."""
    done = run_command(*arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def told(*arguments: object) -> Any:
    """Run a command to its end; return what it said as JSON."""
    return json.loads(edgepool(*arguments, "--json"))


def until(reached: Callable[[], Any]) -> Any:
    """Ask again and again until the answer is one."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(LOOK_EVERY_S)
    return found

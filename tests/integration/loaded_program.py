"""A process that has loaded the program, and forks for each command: `python loaded_program.py FD PRELUDE`.

FD is its end of a socket, on which each message is a command: its words, environment and folder, with
descriptors for its output, its complaints, and for who wants to know its process id and how it ended.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from contextlib import redirect_stderr, suppress
from typing import Any, NoReturn

MAX_COMMAND_BYTES = 256 * 1024


def load() -> None:
    """Load what commands need; the one that is given here fails, for its folder does not exist."""
    from edgepool.cli.main import app

    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), suppress(SystemExit):
        app(["status", os.path.join(os.devnull, "nothing")])
    gc.freeze()  # what is loaded stays as it is, so that those who are forked share it


def next_command(asked: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    raw, descriptors, _, _ = socket.recv_fds(asked, MAX_COMMAND_BYTES, 3)
    return (json.loads(raw), list(descriptors)) if raw else None


def watch(descriptors: list[int]) -> None:
    """Fork once more: return as the command itself, and end as who tells how it has ended."""
    out, err, report = descriptors
    pid = os.fork()
    if pid:
        os.write(report, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for descriptor in descriptors:
        os.close(descriptor)


def main() -> None:
    asked = socket.socket(fileno=int(sys.argv[1]))
    exec(sys.argv[2])
    load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    while (found := next_command(asked)) is not None:
        command, descriptors = found
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            watch(descriptors)
            become(command)
        for descriptor in descriptors:
            os.close(descriptor)


def become(command: dict[str, Any]) -> NoReturn:
    """Be the command, as if it had been begun by itself."""
    from edgepool.cli.main import main

    os.environ.clear()
    os.environ.update(command["env"])
    os.chdir(command["cwd"])
    sys.argv = [os.path.join("edgepool", "__main__.py"), *command["words"]]
    main()
    sys.exit()


main()

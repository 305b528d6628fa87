"""Begins the child: `python -m edgepool.transport.libp2p_child FD PARENT_PID`.

FD is its end of the socket pair. It ends with its parent, whatever happens: the kernel kills it when the
parent dies, and it ends itself when the socket does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie the child to its parent, then run it."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before the kernel was told
    # Ctrl-C in a terminal goes to the whole group; when to end is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from edgepool.transport.libp2p_child.run import run

    run(descriptor)


main()

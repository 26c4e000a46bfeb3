"""The context of libzmq: its threads, begun when a process first needs them, and ended with all that it still sends."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import Any

import zmq

from edgert.transport import forked

_FILES = 16
"""Descriptors that must be free where libzmq starts its threads: twice of what it opens."""
_shared: zmq.Context[Any] | None = None
_making = threading.Lock()


def shared() -> zmq.Context[Any]:
    """One for the process, since inproc endpoints are known within a context. Raises as `begun`."""
    global _shared  # noqa: PLW0603 - made when first needed: importing starts no thread
    with _making:
        if _shared is None:
            _shared = begun()
        return _shared


def begun() -> zmq.Context[Any]:
    """A new one, whose threads run. A libzmq that finds no descriptor for one of its threads ends the whole process
    (epoll.cpp), so it is seen first that there are enough.

    Raises:
        OSError: there are not.
    """
    with ExitStack() as room:
        for _ in range(_FILES):
            room.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    context: zmq.Context[Any] = zmq.Context()
    context.socket(zmq.PAIR).close(linger=0)  # the first socket starts them
    return context


def flush(limit_s: float) -> bool:
    """Wait for what closed inproc and ipc sockets still have to send; for the end of a process, which makes none after.

    Returns:
        Whether all left, or there was nothing; False when the limit passed, or a socket is still open.
    """
    global _shared
    with _making:
        context, _shared = _shared, None
    if context is None:
        return True
    # Ending a context waits for all its sockets, without a limit of its own.
    ending = threading.Thread(target=context.term, name="edgert flush", daemon=True)
    ending.start()
    ending.join(limit_s)
    return not ending.is_alive()


def _forget() -> None:
    """In a process that was forked: what there is belongs to its parent, whose threads are not here."""
    global _shared, _making
    _shared, _making = None, threading.Lock()


forked.forget(_forget)

"""Keep a library's chatter out of the application's standard error, and nothing else.

LiteRT writes "INFO: Created TensorFlow Lite XNNPACK delegate for CPU." to file descriptor 2, once a process, from C++;
its wheel exports no function that sets the level. So the first interpreter of a process is made while descriptor 2 is a
pipe, whose lines are passed on to where it led, all but that one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from edgert.transport import child

_JOIN_S = 1.0
"""How long to wait for the last lines: whoever was forked meanwhile holds the pipe, and is read as long as it lives."""


@contextlib.contextmanager
def stderr_without(chatter: bytes) -> Iterator[None]:
    """Within it, lines that begin with `chatter` are dropped from descriptor 2, of all threads; the others arrive as
    they are, at the latest at its end. In an edgert child it does nothing: there the parent reads the descriptor, and
    the last words of a crash must not be lost in a pipe. For short passages, one at a time.
    """
    try:
        before = None if child.inside() else os.dup(2)
    except OSError:  # it is closed: nobody hears anything
        before = None
    if before is None:
        yield
        return
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    reader = threading.Thread(target=_pass_on, args=(read, before, chatter), name="stderr filter", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(before, 2)  # which closes the pipe's last end
        reader.join(_JOIN_S)


def _pass_on(read: int, sink: int, chatter: bytes) -> None:
    """Lines from one descriptor to another until the first one's writers are gone; closes both."""
    with open(read, "rb") as lines, open(sink, "wb", buffering=0) as out:
        for line in lines:
            if not line.startswith(chatter):
                with contextlib.suppress(OSError):  # nobody reads it any more
                    out.write(line)

"""What a process that was forked must not touch: threads are not there, and all else is its parent's.

A fork copies sockets, children and folders whose owner lives on. The copy forgets them: it ends, kills and removes
nothing of them, and makes its own when it needs some.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def forget(work: Callable[[], None]) -> None:
    """Have every process that is forked from this one do this first."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=work)


def mine(work: Callable[[], object]) -> Callable[[], None]:
    """The same, to be done by this process alone: nothing happens in those that were forked from it."""
    owner = os.getpid()

    def done() -> None:
        if os.getpid() == owner:
            work()

    return done

"""What Ctrl-C does to the command `edgert`: one line on stderr and exit code 130, never a traceback.

Before a command runs and after it has run there is nothing to put away, so the process leaves at once; that covers the
imports, half a second on a small board. While it runs, the first Ctrl-C raises KeyboardInterrupt, so that files and
the terminal are left in order; what is not done `GRACE_S` later, or at the second Ctrl-C, is left as it is. Children
end with this process in any case. Nothing is touched where an interrupt is ignored (a shell's background job) or
somebody else handles it, and none of this concerns who imports edgert as a library.

This module is imported before everything else, so it imports next to nothing itself.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

TYPE_CHECKING = False  # as typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = 130
"""Exit code, as shells give it: 128 and the number of SIGINT."""
GRACE_S = 2.0
"""For putting away after the first Ctrl-C: a library in the middle of a call may take long to come back."""

_came = False
_told = False


def immediately() -> None:
    """From now on Ctrl-C leaves at once. Called first by the command's entry point, in the main thread."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _raise):
        signal.signal(signal.SIGINT, _leave)


def tidily() -> None:
    """From now on the first Ctrl-C raises KeyboardInterrupt; only after `immediately`, else as it was."""
    if signal.getsignal(signal.SIGINT) is _leave:
        sys.unraisablehook = _unraisable
        signal.signal(signal.SIGINT, _raise)


def came() -> bool:
    """Whether Ctrl-C was pressed: what failed since then did so for that reason, whatever it says."""
    return _came


def tell() -> None:
    """Say on stderr that the command was interrupted; only the first call does."""
    global _told  # noqa: PLW0603 - a fact of the process, set once
    if _told:
        return
    _told = True
    # A progress bar hides the cursor, and a terminal shows ^C at the beginning of our line.
    start = "\x1b[?25h\n" if os.isatty(2) else ""
    try:  # noqa: SIM105 - contextlib takes longer to import than all of this
        os.write(2, f"{start}interrupted.\n".encode())
    except OSError:
        pass  # nobody reads stderr any more


def _leave(_number: int = 0, _frame: FrameType | None = None) -> NoReturn:
    """End the process here: no exception that a half-done import or a callback could print."""
    tell()
    os._exit(INTERRUPTED)


def _raise(_number: int, _frame: FrameType | None) -> None:
    global _came  # noqa: PLW0603 - a fact of the process, set once
    _came = True
    signal.signal(signal.SIGINT, _leave)
    if hasattr(signal, "setitimer"):  # Linux has it
        signal.signal(signal.SIGALRM, _leave)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        # At its very end Python gives the signal back its own meaning, which is death with another code.
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Where an exception cannot be raised (the end of an object), an interrupt would be lost and printed."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _leave()
    sys.__unraisablehook__(unraisable)

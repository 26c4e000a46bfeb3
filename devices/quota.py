"""A ceiling on what this process may allocate: a candidate that eats memory fails alone and leaves the box alive.

The kernel's RLIMIT_DATA counts private writable memory when it is asked for, before a page of it is touched, so the
allocation fails in whoever asked and nothing has to be killed. Files that are mapped to be read do not count. Children
that work side by side have a ceiling each; should they exceed the box together, they are first in line for the kernel's
OOM killer (`transport/child`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from edgert.devices.memory import available
from edgert.errors import NotEnoughMemory

_RESERVE_SHARE = 0.1
_RESERVE_BYTES = 64 << 20
"""What is left to the others: a tenth of what is available, and no less than this."""
_WORDS = re.compile(
    r"out of memory|bad_alloc|bad_array_new|\bENOMEM\b|memoryerror|(can ?not|unable to|failed to) alloc", re.IGNORECASE
)
"""How libraries say that an allocation failed."""


def begin(ceiling_bytes: int | None = None) -> None:
    """Let this process allocate no more than what is available now, or `ceiling_bytes`, beyond what it holds.

    Does nothing where the system has no such limit, or does not say what is available.
    """
    if sys.platform != "linux":
        return
    left = available()
    held_bytes = _held_bytes()
    if left is None or not held_bytes:
        return
    reserve_bytes = max(_RESERVE_BYTES, int(_RESERVE_SHARE * left.size_bytes))
    more_bytes = max(0, left.size_bytes - reserve_bytes) if ceiling_bytes is None else ceiling_bytes
    _set(held_bytes + more_bytes)


def end() -> None:
    """Lift the ceiling."""
    if sys.platform == "linux":
        _set(None)


def is_hit(message: str) -> bool:
    """Whether a library's message says that it could not allocate."""
    return _WORDS.search(message) is not None


def shortage(message: str) -> NotEnoughMemory:
    """A library's own words for it as an error of the tree."""
    return NotEnoughMemory(message, "Free memory, or use a larger box.", needed_bytes=None, left_bytes=None)


def _set(size_bytes: int | None) -> None:
    import resource  # Linux has it

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = hard if size_bytes is None else size_bytes
    if hard not in (resource.RLIM_INFINITY, wanted):
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _held_bytes() -> int:
    """Private writable memory of this process (VmData and VmStk of proc_pid_status(5)); 0 where nothing says."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return sum(int(size) * 1024 for size in re.findall(r"^Vm(?:Data|Stk):\s+(\d+) kB$", text, re.MULTILINE))

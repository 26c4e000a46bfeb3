"""Memory that this process holds and may still take, before the kernel's OOM killer ends somebody.

What a board has left is the least of what the kernel says is available (MemAvailable, which counts the cached files
that it would drop) and what each control group that holds this process leaves.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgert.devices import cgroup


@dataclass(frozen=True, slots=True)
class Available:
    """What may still be taken."""

    size_bytes: int
    cause: str
    """What sets it: 'the box' or 'the control group'."""


def available(root: Path = Path("/")) -> Available | None:
    """What is left, read below `root` (tests give a folder that holds a proc and a sys); None where nothing says."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    found = [Available(int(match[1]) * 1024, "the box")] if match else []
    if (left := cgroup.memory_left_bytes(root)) is not None:
        found.append(Available(left, "the control group"))
    return min(found, key=lambda each: each.size_bytes, default=None)


@dataclass(frozen=True, slots=True)
class Resident:
    """What a process holds in memory, mapped files that it looked at among it."""

    now_bytes: int
    peak_bytes: int
    """Since its start, or since `reset_peak`."""


def resident(pid: int | str = "self") -> Resident:
    """Of a process; zeros where the kernel does not say (VmRSS and VmHWM of proc_pid_status(5))."""
    text = _text(Path(f"/proc/{pid}/status"))
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB$", text, re.MULTILINE)}
    now = sizes.get("VmRSS", 0)
    return Resident(now, max(now, sizes.get("VmHWM", 0)))


def reset_peak() -> bool:
    """Begin `peak_bytes` of this process anew (proc_pid_clear_refs(5)); False where the kernel does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def give_back() -> None:
    """Have the C library return what was freed to the kernel: it keeps pieces of up to 32 MiB for later otherwise."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """Glibc's malloc_trim(3); None with another C library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def read_ahead(path: Path, offset: int = 0, length: int = 0) -> None:
    """Have the kernel read a file, or a part of it, into its cache while something else runs; the cache is nobody's
    resident memory. A length of 0 is all that follows.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # whoever needs the file will say what is wrong with it
        return
    try:
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(handle)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # this system has no such file
        return ""

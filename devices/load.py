"""How much of the machine somebody else used while something was timed here."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

_PROC = Path("/proc")
_IDLE, _IOWAIT, _GUEST = 3, 4, 8
"""Columns of the line 'cpu' in /proc/stat (proc(5)); those from `_GUEST` on are counted in earlier ones already."""


class ForeignLoad:
    """Processor time that went to other processes, and to other guests of the host, since `start`."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._started_s = 0.0
        self._before = (0.0, 0.0)

    def start(self, pids: Collection[int]) -> None:
        """Begin; `pids` are the processes that count as ours, beside this one."""
        self._started_s, self._before = time.monotonic(), self._used_s(pids)

    def cores(self, pids: Collection[int]) -> float:
        """Processors that others kept busy on average since `start`; 0 where the kernel does not say.

        A process of ours that began or ended since then makes the figure too small, never too large by more than it
        used.
        """
        elapsed_s = time.monotonic() - self._started_s
        total_s, own_s = (after - before for after, before in zip(self._used_s(pids), self._before, strict=True))
        return max(0.0, total_s - own_s) / elapsed_s if elapsed_s > 0 else 0.0

    def _used_s(self, pids: Collection[int]) -> tuple[float, float]:
        """Busy seconds of all processors, stolen ones included, and of our processes."""
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        try:
            fields = (self._proc / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1 : 1 + _GUEST]
        except OSError:
            return 0.0, 0.0
        busy = sum(int(field) for column, field in enumerate(fields) if column not in (_IDLE, _IOWAIT))
        return busy * tick_s, tick_s * sum(self._ticks(pid) for pid in {os.getpid(), *pids})

    def _ticks(self, pid: int) -> int:
        """User and system time of a process; 0 when it is gone."""
        try:
            words = (self._proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return 0
        # The name, in parentheses, may hold spaces and parentheses itself.
        fields = words.rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

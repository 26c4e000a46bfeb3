"""Whose requests go first among models that run on the CPU in this process.

The kernel shares the cores fairly among models: none has more threads than its plan gives it. What it does not know are
priorities: a request does not begin while higher ones of other models wait or run and need the cores that it would
take. It is held back for nine times its own length at most, so that lower ones keep a tenth of the time.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import Protocol

_PATIENCE = 9.0
"""A request is held back for so many times as long as it runs, ..."""
_LEAST_S = 0.002
"""... and is reckoned to run so long at least."""


class Party(Protocol):
    """The requests of one model."""

    threads: int
    """Cores that one of its runs takes."""

    def cores_above(self, priority: int) -> int:
        """Cores that its requests of higher priorities take, waiting ones too as far as they could run now."""
        ...


class Precedence:
    """All methods but `join` and `leave` are for those who hold `lock`."""

    def __init__(self, cores: int) -> None:
        """Args:
        cores: that all share.
        """
        self.lock = threading.Lock()
        self._cores = cores
        self._parties: list[Party] = []
        self._present: Counter[int] = Counter()
        """Priorities of what waits or runs."""
        self._changed = threading.Condition(self.lock)

    def join(self, party: Party) -> None:
        """A model begins to take requests."""
        with self.lock:
            self._parties.append(party)

    def leave(self, party: Party) -> None:
        """A model takes none any more; harmless twice."""
        with self.lock:
            if party in self._parties:
                self._parties.remove(party)
            self._changed.notify_all()

    def come(self, priority: int) -> None:
        """A request came."""
        self._present[priority] += 1
        if len(self._present) > 1:
            self._changed.notify_all()  # a model whose own request this is may go on

    def go(self, priority: int) -> None:
        """A request is over."""
        self._present[priority] -= 1
        if not self._present[priority]:
            del self._present[priority]
            self._changed.notify_all()

    def wait(self, party: Party, priority: int, since_s: float, mean_s: float) -> bool:
        """Hold the next request of a model back a while, if it has to.

        Args:
            party: the model.
            priority: of its highest request that waits.
            since_s: when it was first held back, on `time.monotonic()`.
            mean_s: of its runs.

        Returns:
            Whether it was held back: then ask again, with what waits now.
        """
        if len(self._present) < 2 or max(self._present) <= priority:
            return False
        left_s = since_s + _PATIENCE * max(mean_s, _LEAST_S) - time.monotonic()
        taken = sum(other.cores_above(priority) for other in self._parties if other is not party)
        if left_s <= 0 or not taken or taken + party.threads <= self._cores:
            return False
        self._changed.wait(left_s)
        return True


SHARED = Precedence(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Of this process."""

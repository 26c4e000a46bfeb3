"""Time as something that can be asked of, so that a simulated device can run in virtual time."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time."""

    def now_s(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when `seconds` have passed on this clock; at once when not positive."""
        ...


class RealClock:
    """The machine's own monotonic clock."""

    def now_s(self) -> float:
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


class VirtualClock:
    """Time that passes only when somebody waits: a second of waiting takes no time at all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now_s = 0.0

    def now_s(self) -> float:
        with self._lock:
            return self._now_s

    def wait(self, seconds: float) -> None:
        with self._lock:
            self._now_s += max(0.0, seconds)

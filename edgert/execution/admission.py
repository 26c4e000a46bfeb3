"""Whether one more request of a model is taken: bounded in number, and refused when its answer would come too late."""

from __future__ import annotations

import threading
import time
from collections import Counter

from edgert.errors import Overloaded
from edgert.execution.limits import Limits
from edgert.execution.recovery import Ladder
from edgert.execution.reserve import Reserve

_CAUTION = 1.6
"""A request is refused when so many times its expected wait would pass its deadline: better at once than late."""
_NEW = 0.1
"""Share of the newest answer in the mean time between answers."""


class Admission:
    """Thread-safe but for `answered`, which belongs to the fleet's loop."""

    def __init__(self, name: str, limits: Limits, ladder: Ladder, reserve: Reserve) -> None:
        """Args:
        name: of the model, for messages.
        limits: how many may wait.
        ladder: tells which way answers, and how fast.
        reserve: answers when no way can.
        """
        self._name, self._limits, self._ladder, self._reserve = name, limits, ladder, reserve
        self._lock = threading.Lock()
        self._under_way: Counter[int] = Counter()
        """Requests by priority."""
        self._mean_gap_s = 0.0
        self._last_answer_s = 0.0

    def enter(self, deadline_s: float | None, priority: int) -> None:
        """One more request; `leave` is called once for each that was taken.

        Args:
            deadline_s: seconds from now, None for no deadline.
            priority: lower ones are not in its way.

        Raises:
            Overloaded: too many wait, or the answer would come after the deadline.
        """
        with self._lock:
            if (waiting := sum(self._under_way.values())) >= self._limits.waiting:
                raise Overloaded(
                    f"{self._name}: {waiting} requests wait already.", "Send fewer, or later.", waiting=waiting
                )
            if deadline_s is not None:
                self._admit(deadline_s, priority)
            self._under_way[priority] += 1

    def leave(self, priority: int) -> None:
        """A request that was taken has ended."""
        with self._lock:
            self._under_way[priority] -= 1

    def answered(self, sent_s: float, *, alone: bool) -> None:
        """An executor answered a request: learn the pace.

        Args:
            sent_s: when it was sent, on `time.monotonic()`.
            alone: whether no other request is under way, so that the gap tells nothing.
        """
        now_s = time.monotonic()
        if not alone and self._last_answer_s:
            gap_s = min(now_s - self._last_answer_s, now_s - sent_s)
            self._mean_gap_s += (gap_s - self._mean_gap_s) * _NEW
        self._last_answer_s = now_s

    def _admit(self, deadline_s: float, priority: int) -> None:
        before = sum(count for own, count in self._under_way.items() if own >= priority)
        expected_s = self._expected_s(before, priority)
        if expected_s > deadline_s:
            raise Overloaded(
                f"{self._name}: with {before} requests before it, an answer would take about {expected_s:.3f} s, "
                f"and the deadline is in {deadline_s:.3f} s.",
                "Send fewer, or give more time.", waiting=before,
            )  # fmt: skip

    def _expected_s(self, before: int, priority: int) -> float:
        """Time to the answer of a request that comes now, by what was measured of late and what other models do."""
        way = self._ladder.usable()
        if way is None:
            return (before + 1) * self._reserve.expected_s()
        by_pace_s = before * self._mean_gap_s * _CAUTION
        by_load_s = before * way.bottleneck_s() * _CAUTION + way.others_s(before + 1, priority)
        return max(by_pace_s, by_load_s) + 1.5 * way.total_s()

"""Whether one more request of a model is taken: bounded in number, and refused when its answer would come too late."""

from __future__ import annotations

import time

from edgert.errors import Overloaded
from edgert.execution.flight import Count
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
        self._under_way = Count()
        self._mean_gap_s = 0.0
        self._last_answer_s = 0.0

    def enter(self, deadline_s: float | None) -> None:
        """One more request; `leave` is called once for each that was taken.

        Args:
            deadline_s: seconds from now, None for no deadline.

        Raises:
            Overloaded: too many wait, or the answer would come after the deadline.
        """
        waiting = self._under_way.add(1)
        try:
            self._admit(waiting, deadline_s)
        except Overloaded:
            self._under_way.add(-1)
            raise

    def leave(self) -> None:
        """A request that was taken has ended."""
        self._under_way.add(-1)

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

    def _admit(self, waiting: int, deadline_s: float | None) -> None:
        if waiting > self._limits.waiting:
            raise Overloaded(
                f"{self._name}: {waiting - 1} requests wait already.", "Send fewer, or later.", waiting=waiting - 1
            )
        if deadline_s is None:
            return
        expected_s = self._expected_s(waiting)
        if expected_s > deadline_s:
            raise Overloaded(
                f"{self._name}: with {waiting - 1} requests before it, an answer would take about {expected_s:.3f} s, "
                f"and the deadline is in {deadline_s:.3f} s.",
                "Send fewer, or give more time.", waiting=waiting - 1,
            )  # fmt: skip

    def _expected_s(self, waiting: int) -> float:
        """Time to the answer of a request that comes now, by what was measured of late."""
        way = self._ladder.usable()
        if way is None:
            return waiting * self._reserve.expected_s()
        return (waiting - 1) * max(self._mean_gap_s, way.bottleneck_s()) * _CAUTION + 1.5 * way.total_s()

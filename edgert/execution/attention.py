"""When an executor that has nothing to do shall watch its inbox instead of sleeping: just before work is to come.

A thread that sleeps is woken in tens of microseconds, and then runs several times slower than it could for a while,
since its core forgot it. So the executor before says when it begins a run (`messages.Soon`), and the one after watches
around the moment at which the work has come before. It gives its core away whenever anybody else wants it, watches for
a fifth of the time at most (half a millisecond where that is more), and not at all where the moment cannot be told.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque

_LEAST_S, _MOST_S, _SHARE = 500e-6, 2e-3, 0.2
"""It may watch for this share of the time that it waits for a request, or the first where that is more; never longer
than the second."""
_MARGIN_S = 50e-6
"""Before the time in which most work came."""
_RECENT = 16
"""Times that count."""
_REMEMBERED = 1024
"""Segments whose times are kept."""
_UNLIKELY_S = 1.0
"""A hint after which nothing came for so long was one of work that went elsewhere."""


class _Gap:
    """From the hint to the work."""

    def __init__(self) -> None:
        self._recent_s: deque[float] = deque(maxlen=_RECENT)
        self._window: tuple[float, float] | None = None
        self._is_new = False

    def saw(self, gap_s: float) -> None:
        """One more."""
        self._recent_s.append(gap_s)
        self._is_new = True

    def window(self) -> tuple[float, float] | None:
        """When to watch, seconds after the hint; None where no window that is short enough holds most work.

        Not the mean and what is around it: a few that something else held up would spoil both for many to come.
        """
        if self._is_new:  # found only now: `saw` is called when work has come and waits
            self._is_new = False
            times = sorted(self._recent_s)
            most_s = max(_LEAST_S, min(_MOST_S, _SHARE * times[len(times) // 2]))
            ends = [bisect_right(times, first + most_s - _MARGIN_S) for first in times]
            held, start = max((end - start, -start) for start, end in enumerate(ends))
            begin_s = times[-start] - _MARGIN_S
            self._window = (begin_s, begin_s + most_s) if 2 * held > len(times) else None
        return self._window


class Attention:
    """Belongs to the executor's loop."""

    def __init__(self) -> None:
        self._gaps: dict[str, _Gap] = {}
        self._hinted: dict[str, float] = {}
        """Segment -> when work for it was foretold, and has not come yet."""

    def foretold(self, segment: str) -> None:
        """Work for a segment will come."""
        self._hinted[segment] = time.monotonic()
        if len(self._hinted) > _REMEMBERED:
            self._hinted.pop(next(iter(self._hinted)))

    def came(self, segment: str) -> None:
        """Work for a segment came."""
        hinted_s = self._hinted.pop(segment, None)
        if hinted_s is None:
            return
        gap_s = time.monotonic() - hinted_s
        if gap_s > _UNLIKELY_S:
            return
        gap = self._gaps.get(segment)
        if gap is None:
            gap = self._gaps[segment] = _Gap()
            if len(self._gaps) > _REMEMBERED:
                self._gaps.pop(next(iter(self._gaps)))
        gap.saw(gap_s)

    def knows(self, segment: str) -> bool:
        """Whether work for a segment has been foretold, and came."""
        return segment in self._gaps

    def next(self) -> tuple[str, float, float] | None:
        """A segment for which work is to come, and from when to when to watch for it, on `time.monotonic()`; None:
        sleep.
        """
        if not self._hinted:
            return None
        now_s = time.monotonic()
        for segment, hinted_s in self._hinted.items():
            gap = self._gaps.get(segment)
            window = None if gap is None else gap.window()
            if window is not None and now_s < hinted_s + window[1]:
                return segment, hinted_s + window[0], hinted_s + window[1]
        return None

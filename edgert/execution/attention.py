"""When an executor that has nothing to do shall watch its inbox instead of sleeping: just before work is to come.

A thread that sleeps is woken in tens of microseconds, and then runs several times slower than it could for a while,
since its core forgot it. So the executor before says when it begins a run (`messages.Soon`), and the one after watches
around the moment at which the work has come before. It gives its core away whenever anybody else wants it, watches for
a fifth of the time at most (half a millisecond where that is more), and not at all where the moment cannot be told.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

_LEAST_S, _MOST_S, _SHARE = 500e-6, 2e-3, 0.2
"""It may watch for this share of the time that it waits for a request, or the first where that is more; never longer
than the second."""
_MARGIN_S = 50e-6
"""Before and after the time in which most work came."""
_NEW = 0.25
"""Share of the newest time in the mean."""
_REMEMBERED = 1024
"""Segments whose times are kept."""
_UNLIKELY_S = 1.0
"""A hint after which nothing came for so long was one of work that went elsewhere."""


@dataclass(slots=True)
class _Gap:
    """From the hint to the work."""

    mean_s: float
    deviation_s: float
    """Mean distance from the mean."""

    def saw(self, gap_s: float) -> None:
        # One that was held up by something else must not spoil the guess for many to come.
        gap_s = min(gap_s, self.mean_s + 4 * max(self.deviation_s, _MARGIN_S))
        self.deviation_s += (abs(gap_s - self.mean_s) - self.deviation_s) * _NEW
        self.mean_s += (gap_s - self.mean_s) * _NEW


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
        if gap is not None:
            gap.saw(gap_s)
        else:
            self._gaps[segment] = _Gap(gap_s, gap_s / 4)
            if len(self._gaps) > _REMEMBERED:
                self._gaps.pop(next(iter(self._gaps)))

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
            if gap is not None:
                most_s = max(_LEAST_S, min(_MOST_S, _SHARE * gap.mean_s))
                around_s = min(most_s / 2, 2 * gap.deviation_s + _MARGIN_S)
                middle_s = hinted_s + gap.mean_s
                if gap.deviation_s < most_s and now_s < middle_s + around_s:
                    return segment, middle_s - around_s, middle_s + around_s
        return None

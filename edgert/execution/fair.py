"""A queue that is fair over models: start-time fair queueing with priorities.

Each model has a virtual clock that advances by the cost of what it was given; the model whose clock is furthest
behind goes next, so a model with short requests is not held up by one with long ones, and a flood of one delays no
other. Source: Goyal, Vin and Cheng, "Start-time fair queueing", SIGCOMM 1996.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Not thread-safe: it belongs to one loop, or is guarded by its owner's lock."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Item]] = []
        self._now = 0.0
        self._ends: dict[Hashable, float] = {}
        self._count = 0

    def put(self, item: Item, model: Hashable, cost_s: float, priority: int = 0) -> None:
        """Add an item.

        Args:
            item: what waits.
            model: whose share it is charged to.
            cost_s: how long it will keep the device busy, as far as known.
            priority: higher goes first, always; fairness holds among equals.
        """
        start = max(self._now, self._ends.get(model, 0.0))
        self._ends[model] = start + cost_s
        heapq.heappush(self._heap, (-priority, start, self._count, item))
        self._count += 1

    def pop(self) -> Item:
        """Whose turn it is.

        Raises:
            IndexError: nobody waits.
        """
        _, start, _, item = heapq.heappop(self._heap)
        self._now = max(self._now, start)
        if not self._heap:
            self._ends.clear()  # nobody is owed anything when nobody waits
        return item

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out, and return, what `unwanted` says."""
        gone = [entry[3] for entry in self._heap if unwanted(entry[3])]
        if gone:
            self._heap = [entry for entry in self._heap if not unwanted(entry[3])]
            heapq.heapify(self._heap)
        return gone

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Item]:
        return (entry[3] for entry in self._heap)

"""A queue that is fair over models: start-time fair queueing, with priorities that starve nobody.

Each model has a virtual clock that advances by the cost of what it was given; the model whose clock is furthest
behind goes next, so a model with short requests is not held up by one with long ones, and a flood of one delays no
other. Source: Goyal, Vin and Cheng, "Start-time fair queueing", SIGCOMM 1996.

A higher priority goes first, for nine tenths of the time: while higher ones keep lower ones waiting, the lower ones are
owed a ninth of what is spent, and the one that came first gets its turn when that pays for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, NamedTuple, TypeVar

from edgert import options

Item = TypeVar("Item")
PRIORITIES = range(-100, 101)
"""That requests may have: few enough that each may have a window and a route of its own."""
_OWED = 1 / 9
"""To those that wait behind a higher priority, of the time that it takes: a tenth of all."""
_LEAST_S = 1e-5
"""Cost of an item whose cost is not known yet: no turn is free, or those who wait would be owed nothing."""


def checked_priority(value: object) -> int:
    """A priority that a caller chose.

    Raises:
        OptionError: it is no whole number among `PRIORITIES`.
    """
    if type(value) is int and value in PRIORITIES:
        return value
    words = f"Pass a whole number from {PRIORITIES.start} to {PRIORITIES.stop - 1}; higher goes first."
    return int(options.number("priority", value, words, lambda number: number in PRIORITIES))


class _Waiting(NamedTuple, Generic[Item]):
    """Ordered as the heap needs it: no two have the same number."""

    start_s: float
    """On the virtual clock."""
    number: int
    """In the order in which they came, whatever their priority."""
    cost_s: float
    model: Hashable
    item: Item


class _Equals(Generic[Item]):
    """Items of one priority; exists while there are any."""

    def __init__(self) -> None:
        self.heap: list[_Waiting[Item]] = []
        self._now_s = 0.0
        self._ends: dict[Hashable, float] = {}

    def put(self, item: Item, model: Hashable, cost_s: float, number: int) -> None:
        start_s = max(self._now_s, self._ends.get(model, 0.0))
        self._ends[model] = start_s + cost_s
        heapq.heappush(self.heap, _Waiting(start_s, number, cost_s, model, item))

    def pop(self) -> _Waiting[Item]:
        first = heapq.heappop(self.heap)
        self._now_s = max(self._now_s, first.start_s)
        return first

    def keep(self, kept: list[_Waiting[Item]]) -> None:
        """Those alone; what was taken out is charged to nobody."""
        self.heap = kept
        heapq.heapify(kept)
        self._ends = {}
        for each in kept:
            self._ends[each.model] = max(self._ends.get(each.model, 0.0), each.start_s + each.cost_s)


class FairQueue(Generic[Item]):
    """Not thread-safe: it belongs to one loop, or is guarded by its owner's lock."""

    def __init__(self) -> None:
        self._equals: dict[int, _Equals[Item]] = {}
        """By priority."""
        self._count = self._size = 0
        self._owed_s = 0.0

    def put(self, item: Item, model: Hashable, cost_s: float, priority: int = 0) -> None:
        """Add an item.

        Args:
            item: what waits.
            model: whose share it is charged to.
            cost_s: how long it will keep the device busy, as far as known.
            priority: higher goes first, for nine tenths of the time; fairness holds among equals.
        """
        equals = self._equals.get(priority)
        if equals is None:
            equals = self._equals[priority] = _Equals()
        equals.put(item, model, max(cost_s, _LEAST_S), self._count)
        self._count += 1
        self._size += 1

    def priorities(self) -> list[int]:
        """Of those that wait, highest first."""
        return sorted(self._equals, reverse=True)

    def highest(self) -> int:
        """The highest priority that waits.

        Raises:
            ValueError: nobody waits.
        """
        return max(self._equals)

    def above(self, priority: int) -> int:
        """How many wait of higher priorities."""
        return sum(len(equals.heap) for own, equals in self._equals.items() if own > priority)

    def below(self, priority: int) -> int:
        """How many wait of lower priorities."""
        return sum(len(equals.heap) for own, equals in self._equals.items() if own < priority)

    def pop(self, priority: int | None = None) -> Item:
        """Whose turn it is.

        Args:
            priority: among those of this priority alone; None for all.

        Raises:
            IndexError: nobody waits.
        """
        if not self._size:
            raise IndexError("nobody waits")
        if priority is None:
            priority = next(iter(self._equals)) if len(self._equals) == 1 else self._turn()
        equals = self._equals[priority]
        item = equals.pop().item
        if not equals.heap:
            del self._equals[priority]  # nobody is owed anything when nobody waits
        self._size -= 1
        return item

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out, and return, what `unwanted` says."""
        gone: list[Item] = []
        for priority, equals in list(self._equals.items()):
            out = [each for each in equals.heap if unwanted(each.item)]
            if out:
                numbers = {each.number for each in out}
                equals.keep([each for each in equals.heap if each.number not in numbers])
                gone.extend(each.item for each in out)
            if not equals.heap:
                del self._equals[priority]
        self._size -= len(gone)
        return gone

    def _turn(self) -> int:
        """The priority to serve, where several wait."""
        highest = max(self._equals)
        heads = {priority: equals.heap[0] for priority, equals in self._equals.items() if priority != highest}
        patient = min(heads, key=lambda priority: heads[priority].number)
        if self._owed_s >= heads[patient].cost_s:
            self._owed_s -= heads[patient].cost_s
            return patient
        self._owed_s += self._equals[highest].heap[0].cost_s * _OWED
        return highest

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Item]:
        return (each.item for equals in self._equals.values() for each in equals.heap)

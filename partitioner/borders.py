"""Local search where each target runs one piece: borders between pieces shift, and the pieces stay in order.

The moves are those of `ranks`: an item goes to another piece or to the host, and with it whatever is in its way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Protocol

from edgert.partitioner.indexed import Indexed
from edgert.partitioner.loads import Loads
from edgert.partitioner.quotient import Quotient
from edgert.partitioner.ranks import Ranks

__all__ = ["Borders", "accepts"]

_MOST = 32
"""Items that move at once."""
_LOOK_EVERY = 40
"""Rounds after which the longest path is looked up again."""


class Gauge(Protocol):
    """What a placement costs, while items move."""

    place: list[int]
    """[item] -> its target."""

    def move(self, item: int, target: int) -> None:
        """Put the item on the target."""

    def valid(self) -> bool:
        """Whether the limits are kept."""

    def height(self, scale: float) -> float:
        """What local search makes small, about 1 where the cost is `scale`."""

    def top(self) -> float:
        """The cost."""

    def critical(self) -> list[int]:
        """Items without which the cost cannot fall, or none where that is not known."""


class Requests:
    """The latency of placements under the rules of `Quotient`, as a gauge."""

    def __init__(self, quotient: Quotient, start: Sequence[int]) -> None:
        self.quotient = quotient
        self.place = list(start)
        self.cost = math.inf

    def move(self, item: int, target: int) -> None:
        """As a gauge."""
        self.place[item] = target

    def valid(self) -> bool:
        """As a gauge; a limit that is broken makes the height infinite instead."""
        return True

    def height(self, scale: float) -> float:
        """As a gauge."""
        self.cost = self.quotient.cost(self.place)
        return self.cost / scale

    def top(self) -> float:
        """As a gauge; of the last `height`."""
        return self.cost

    def critical(self) -> list[int]:
        """As a gauge."""
        return self.quotient.critical(self.place)


def accepts(change: float, heat: float, chance: random.Random) -> bool:
    """Whether to go on from a move that changes the height by so much."""
    return change <= 0 or (heat > 0 and chance.random() < math.exp(-change / heat))


class Borders:
    """Anneals a placement whose pieces have an order."""

    def __init__(self, indexed: Indexed, quotient: Quotient | None = None) -> None:
        """With a quotient the latency is made small, else the largest load."""
        self.indexed, self.quotient = indexed, quotient

    def gauge(self, start: Sequence[int]) -> Gauge:
        """What `start` costs."""
        return Loads(self.indexed, start) if self.quotient is None else Requests(self.quotient, start)

    def __call__(
        self, start: Sequence[int], cost: float, chance: random.Random, heats: Iterator[float]
    ) -> list[int] | None:
        """The best that was met from `start`; None where its pieces have no order."""
        ranks = Ranks.of(self.indexed, start)
        if ranks is None:
            return None
        gauge = self.gauge(start)
        best, best_cost, now = list(start), cost, gauge.height(cost)
        slow: list[int] = []
        for number, heat in enumerate(heats):
            if number % _LOOK_EVERY == 0:
                slow = gauge.critical()
            item = chance.choice(slow) if slow and chance.random() < 0.5 else chance.randrange(len(best))
            rank = ranks.proposal(item, chance)
            items = ranks.closure(item, rank, _MOST) if rank != ranks.rank[item] else None
            if items is None:
                continue
            old = [gauge.place[each] for each in items]
            target, undo = ranks.move(items, rank)
            _put(gauge, items, old, [target] * len(items))
            then = gauge.height(cost) if gauge.valid() else math.inf
            if not accepts(then - now, heat, chance):
                ranks.back(undo, old)
                _put(gauge, items, [target] * len(items), old)
                continue
            now = then
            if gauge.top() < best_cost * (1 - 1e-9):
                best, best_cost = list(gauge.place), gauge.top()
        return best


def _put(gauge: Gauge, items: Sequence[int], old: Sequence[int], new: Sequence[int]) -> None:
    for item, before, after in zip(items, old, new, strict=True):
        if before != after:
            gauge.move(item, after)

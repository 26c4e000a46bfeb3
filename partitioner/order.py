"""Topological order."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping


def topological(after: Mapping[int, Collection[int]], rank: Mapping[int, int]) -> list[int] | None:
    """An order in which each comes before all that are after it; None where there is a cycle.

    Kahn's algorithm; of those that may come next, the one of the least rank does.

    Args:
        after: each -> those that must come later, each of them once.
        rank: each -> its place in an order that is to be kept where it can be; no two alike.
    """
    waits = dict.fromkeys(after, 0)
    for later in after.values():
        for other in later:
            waits[other] += 1
    ready = [(rank[one], one) for one, waiting in waits.items() if not waiting]
    heapq.heapify(ready)
    order = []
    while ready:
        _, one = heapq.heappop(ready)
        order.append(one)
        for other in after[one]:
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(ready, (rank[other], other))
    return order if len(order) == len(after) else None

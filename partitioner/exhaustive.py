"""Every placement, but for those that a bound rules out: exact under any rules, for small problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgert.partitioner.evaluate import cost_of
from edgert.partitioner.indexed import Indexed

__all__ = ["lower_bound", "search_all"]


def lower_bound(indexed: Indexed) -> float:
    """What no placement can beat: the longest path at each block's cheapest target, and the work shared out.

    Launch costs and transfers are left out.
    """
    throughput = indexed.problem.objective == "throughput"
    path = 0.0 if throughput else _path(indexed, [min(costs) for costs in indexed.costs])
    # Blocks of a host overlap without limit, so work bounds the latency only where there is none.
    return max(path, _shared_work(indexed)) if throughput or not any(indexed.host) else path


def _shared_work(indexed: Indexed, rounds: int = 60) -> float:
    """The least largest load if blocks could be split: by weak duality, for any shares w >= 0 of the devices with sum 1
    the largest load is at least the sum over items of min over targets of w x load. Shares follow the loads of the
    cheapest choice, multiplicatively (Arora, Hazan and Kale, "The multiplicative weights update method", 2012).
    """
    shares = np.array([_share(indexed, t) for t in range(len(indexed.lanes))])
    loads = np.array(indexed.item_costs) * shares
    devices = np.array(indexed.device_of)
    weights = np.full(len(indexed.capacity), 1.0 / len(indexed.capacity))
    rows = np.arange(len(loads))
    best = float(loads.min(axis=1).max())
    for number in range(rounds):
        chosen = np.argmin(np.where(np.isinf(loads), np.inf, loads) * np.maximum(weights, 1e-12)[devices], axis=1)
        best = max(best, float((loads[rows, chosen] * weights[devices[chosen]]).sum()) * (1 - 1e-12))
        held = np.bincount(devices[chosen], weights=loads[rows, chosen], minlength=len(weights))
        if held.max() <= 0:
            break
        weights = weights * np.exp(0.5 / (1 + number) ** 0.5 * held / held.max())
        weights = weights / weights.sum()
    return best


def _share(indexed: Indexed, target: int) -> float:
    return indexed.lanes[target] / indexed.device_lanes[indexed.device_of[target]]


def _path(indexed: Indexed, costs: Sequence[float]) -> float:
    done = [0.0] * len(costs)
    for block, before in enumerate(indexed.predecessors):
        done[block] = costs[block] + max((done[b] for b in before), default=0.0)
    return max(done)


def search_all(
    indexed: Indexed, best: Sequence[int] | None, cost: float, more: Callable[[], bool]
) -> tuple[list[int] | None, float, bool]:
    """Depth-first branch and bound over the items, in topological order.

    Args:
        indexed: the problem.
        best: an assignment to start from, or None.
        cost: of `best`; infinite without.
        more: whether to go on; asked now and then.

    Returns:
        The best assignment, its cost, and whether all were considered (then it is the optimum, or there is none).
    """
    return _Search(indexed, best, cost, more).run()


class _Search:
    def __init__(self, indexed: Indexed, best: Sequence[int] | None, cost: float, more: Callable[[], bool]) -> None:
        self.indexed = indexed
        self.best = None if best is None else list(best)
        self.cost = cost
        self.more = more
        self.visited = 0
        self.stopped = False
        self.assignment = [-1] * len(indexed.items)
        self.used = [0] * len(indexed.device_of)
        self.held = [0.0] * len(indexed.capacity)
        self.loads = [0.0] * len(indexed.capacity)
        self.cheapest = [min(costs) for costs in indexed.costs]
        self.options = [
            sorted(indexed.allowed(item), key=lambda t, i=item: indexed.item_costs[i][t])  # type: ignore[misc]
            for item in range(len(indexed.items))
        ]

    def run(self) -> tuple[list[int] | None, float, bool]:
        self._place(0)
        return self.best, self.cost, not self.stopped

    def _place(self, item: int) -> None:
        indexed = self.indexed
        self.visited += 1
        if self.visited % 64 == 0 and not self.more():
            self.stopped = True
        if self.stopped:
            return
        if item == len(indexed.items):
            cost = cost_of(indexed, indexed.spread(self.assignment))
            if cost < self.cost:
                self.best, self.cost = list(self.assignment), cost
            return
        for t in self.options[item]:
            if not self._first_of_twins(t):
                continue
            d = indexed.device_of[t]
            held, load = self.held[d], self.loads[d]  # kept: taking off again what is large leaves a rest of it
            self.assignment[item] = t
            self.used[t] += 1
            self.held[d] += indexed.item_memory[item]
            self.loads[d] += indexed.item_costs[item][t] * _share(indexed, t)
            if self._promising(item, t, d):
                self._place(item + 1)
            self.used[t] -= 1
            self.held[d], self.loads[d] = held, load
            self.assignment[item] = -1

    def _first_of_twins(self, target: int) -> bool:
        """Targets that do not differ are taken in order."""
        twin = self.indexed.twins[target]
        same = (t for t in range(target) if self.indexed.twins[t] == twin)
        return all(self.used[t] for t in same)

    def _promising(self, item: int, target: int, device: int) -> bool:
        indexed = self.indexed
        if self.held[device] > indexed.capacity[device]:
            return False
        # 1e-12: sums in another order may differ in the last digits
        counts = indexed.problem.objective == "throughput" or not indexed.host[target]
        if counts and self.loads[device] * (1 - 1e-12) >= self.cost:
            return False
        if indexed.problem.objective == "throughput" or math.isinf(self.cost):
            return True
        costs = self.cheapest.copy()
        for placed in range(item + 1):
            for block in indexed.items[placed]:
                costs[block] = indexed.costs[block][self.assignment[placed]]
        return _path(indexed, costs) * (1 - 1e-12) < self.cost

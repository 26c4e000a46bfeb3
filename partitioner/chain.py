"""Exact placement of a chain: each block feeds the next one only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgert.partitioner.indexed import Indexed

__all__ = ["is_chain", "place_chain", "price_chain"]


def is_chain(indexed: Indexed) -> bool:
    """Whether `place_chain` is exact but for limits: a chain, one request's latency, transfers beside devices."""
    problem = indexed.problem
    rules = problem.objective == "latency" and problem.pieces == "many" and problem.transfers in ("link", "free")
    line = all(after in ((), (block + 1,)) for block, after in enumerate(indexed.successors))
    joined = sum(map(len, indexed.successors)) == len(indexed.names) - 1
    return rules and line and joined and len(indexed.items) == len(indexed.names)


def price_chain(
    indexed: Indexed, upper: float, offer: Callable[[list[int]], float], more: Callable[[], bool], rounds: int = 40
) -> float:
    """A lower bound on a chain's latency under limits on memory, from prices on it; each placement met is offered.

    Lagrange relaxation (Geoffrion, Mathematical Programming Study 2, 1974): with a price >= 0 for each byte on each
    limited device, the cheapest chain at those prices, less the price of all the room, bounds the latency. Prices
    follow the subgradient with Polyak's step.

    Args:
        indexed: the problem; `is_chain`.
        upper: cost of a known placement, or infinity.
        offer: takes an assignment and returns the least cost known then.
        more: whether there is time.
        rounds: at most.
    """
    limited = [d for d, room in enumerate(indexed.capacity) if math.isfinite(room)]
    prices = [0.0] * len(indexed.capacity)
    bound, stalled, pace = 0.0, 0, 1.0
    for _ in range(rounds):
        found, cost = place_chain(indexed, prices)
        if found is None:
            return math.inf
        value = cost - math.fsum(prices[d] * indexed.capacity[d] for d in limited)
        stalled = 0 if value > bound * (1 + 1e-4) else stalled + 1
        bound = max(bound, value)
        upper = min(upper, offer(found))
        held = [0.0] * len(prices)
        for block, t in enumerate(found):
            held[indexed.device_of[t]] += indexed.memory[block]
        excess = {d: held[d] - indexed.capacity[d] for d in limited}
        steps = {d: e for d, e in excess.items() if e > 0 or prices[d] > 0}
        norm = math.fsum(e * e for e in steps.values())
        if norm == 0 or upper <= bound * (1 + 1e-9) or not more():
            break
        if stalled >= 4:
            pace, stalled = pace / 2, 0
        aim = upper if math.isfinite(upper) else 1.5 * max(value, bound)
        step = pace * max(aim - value, 1e-9 * abs(value)) / norm
        for d, e in steps.items():
            prices[d] = max(0.0, prices[d] + step * e)
    return bound


def place_chain(indexed: Indexed, prices: Sequence[float] | None = None) -> tuple[list[int] | None, float]:
    """Cheapest assignment of a chain, and its latency.

    Dynamic programme over (block, target): O(n k^2) for n blocks and k targets, times the number of segments where that
    is limited. Requires `is_chain`. Nothing overlaps on a chain, so latency is the sum of blocks, launches and
    transfers. Memory and energy are left out: where the assignment breaks them, its latency is a lower bound.

    Args:
        indexed: the problem.
        prices: [device] -> added to the cost for each byte that a block holds there.

    Returns:
        The assignment, None when there is none at all, and its cost (then infinite).
    """
    problem = indexed.problem
    most = problem.most_segments
    layers = 1 if most is None else most
    targets = range(len(problem.targets))
    table = [[math.inf] * len(targets) for _ in range(layers)]
    costs = indexed.costs if prices is None or not any(prices) else _priced(indexed, prices)
    table[0] = [cost + indexed.launch[t] for t, cost in enumerate(costs[0])]
    traces: list[list[list[tuple[int, int]]]] = []
    for block in range(1, len(indexed.names)):
        following = [[math.inf] * len(targets) for _ in range(layers)]
        trace = [[(0, 0)] * len(targets) for _ in range(layers)]
        moves = _moves(indexed, block)
        for layer in range(layers):
            for t in targets:
                for before in targets:
                    # Blocks of a host are segments of their own; elsewhere a segment ends where the target changes.
                    new = before != t or indexed.host[t]
                    source = layer if most is None or not new else layer - 1
                    if source < 0:
                        continue
                    cost = table[source][before] + moves[before][t] + (indexed.launch[t] if new else 0.0)
                    if cost < following[layer][t]:
                        following[layer][t], trace[layer][t] = cost, (source, before)
                following[layer][t] += costs[block][t]
        table = following
        traces.append(trace)
    return _back(table, traces)


def _priced(indexed: Indexed, prices: Sequence[float]) -> list[list[float]]:
    rates = [prices[d] for d in indexed.device_of]
    rows = zip(indexed.costs, indexed.memory, strict=True)
    return [[cost + memory * rate for cost, rate in zip(row, rates, strict=True)] for row, memory in rows]


def _moves(indexed: Indexed, block: int) -> list[list[float]]:
    """[target before][target] -> time of the values from the block before."""
    total = [[0.0] * len(indexed.device_of) for _ in indexed.device_of]
    for number in indexed.wires_into[block]:
        times = indexed.wires[number].times
        for a, d in enumerate(indexed.device_of):
            for b, e in enumerate(indexed.device_of):
                total[a][b] += times[d][e]
    return total


def _back(
    table: Sequence[Sequence[float]], traces: Sequence[Sequence[Sequence[tuple[int, int]]]]
) -> tuple[list[int] | None, float]:
    cost, layer, target = min((cost, layer, t) for layer, row in enumerate(table) for t, cost in enumerate(row))
    if math.isinf(cost):
        return None, math.inf
    found = [target]
    for trace in reversed(traces):
        layer, target = trace[layer][target]
        found.append(target)
    return found[::-1], cost

"""Exact placement of a chain: each block feeds the next one only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgert.partitioner.indexed import Indexed

__all__ = ["is_chain", "place_chain"]


def is_chain(indexed: Indexed) -> bool:
    """Whether `place_chain` answers exactly but for limits: a chain, one request's latency, transfers beside devices."""
    problem = indexed.problem
    rules = problem.objective == "latency" and problem.pieces == "many" and problem.transfers in ("link", "free")
    line = all(after in ((), (block + 1,)) for block, after in enumerate(indexed.successors))
    joined = sum(map(len, indexed.successors)) == len(indexed.names) - 1
    return rules and line and joined and len(indexed.items) == len(indexed.names)


def place_chain(indexed: Indexed) -> tuple[list[int] | None, float]:
    """Cheapest assignment of a chain, and its latency.

    Dynamic programme over (block, target): O(n k^2) for n blocks and k targets, times the number of segments where that
    is limited. Requires `is_chain`. Nothing overlaps on a chain, so latency is the sum of blocks, launches and
    transfers. Memory and energy are left out: where the assignment breaks them, its latency is a lower bound.

    Returns:
        The assignment, None when there is none at all, and its cost (then infinite).
    """
    problem = indexed.problem
    most = problem.most_segments
    layers = 1 if most is None else most
    targets = range(len(problem.targets))
    table = [[math.inf] * len(targets) for _ in range(layers)]
    table[0] = [cost + _launch(indexed, t) for t, cost in enumerate(indexed.costs[0])]
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
                    cost = table[source][before] + moves[before][t] + (_launch(indexed, t) if new else 0.0)
                    if cost < following[layer][t]:
                        following[layer][t], trace[layer][t] = cost, (source, before)
                following[layer][t] += indexed.costs[block][t]
        table = following
        traces.append(trace)
    return _back(table, traces)


def _launch(indexed: Indexed, target: int) -> float:
    return indexed.launch[target]


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

"""Placements to start from, of any graph within a second: by list scheduling, and by cuts of a line.

List scheduling is HEFT (Topcuoglu, Hariri and Wu, "Performance-effective and low-complexity task scheduling for
heterogeneous computing", IEEE TPDS 13, 2002), made to keep memory limits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from edgert.partitioner.indexed import Indexed
from edgert.partitioner.intervals import item_graph, item_orders, place_intervals, random_orders

__all__ = ["first_fit", "list_schedule", "starts"]

_LINES = 16
"""Random orders to cut."""


def starts(indexed: Indexed, more: Callable[[], bool]) -> Iterator[list[int]]:
    """Assignments to start from, some of which may break limits; the first are quick to make."""
    for target in range(len(indexed.device_of)):
        if indexed.twins[target] == target and all(math.isfinite(costs[target]) for costs in indexed.item_costs):
            yield [target] * len(indexed.items)
    yield first_fit(indexed)
    if indexed.problem.pieces == "many":
        yield list_schedule(indexed)
    # One convex piece each is hard to reach by single moves: many lines are cut instead.
    hard = indexed.problem.objective == "throughput" and indexed.problem.pieces != "many"
    if hard and any(indexed.host):
        yield from between_refusals(indexed)
    for order in itertools.chain(item_orders(indexed), random_orders(indexed, _LINES if hard else 0)):
        if not more():
            return
        yield from place_intervals(indexed, order)


def between_refusals(indexed: Indexed) -> Iterator[list[int]]:
    """One piece a worker, of items between those that only the host takes; the rest is on the host.

    An item's level is the largest number of refused items on a path to it (or from it). A path between two items of one
    level passes no refused one and does not leave the level, so each level is convex, and so is what comes first of it
    in a topological order. The levels with most work go to the workers, as far as their memory reaches.
    """
    host = indexed.host.index(True)
    workers = [t for t, hosted in enumerate(indexed.host) if not hosted]
    taken = [any(math.isfinite(costs[t]) for t in workers) for costs in indexed.item_costs]
    after, before = item_graph(indexed)
    order = item_orders(indexed)[0]
    for way, reads in ((order, before), (order[::-1], after)):
        level = [0] * len(order)
        levels: dict[int, list[int]] = {}
        for item in way:
            level[item] = max((level[b] + (not taken[b]) for b in reads[item]), default=0)
            if taken[item]:
                levels.setdefault(level[item], []).append(item)
        most = sorted(levels.values(), key=lambda items: -sum(indexed.item_costs[i][host] for i in items))
        assignment = [host] * len(order)
        for target, items in zip(workers, most, strict=False):
            left = indexed.capacity[indexed.device_of[target]]
            for item in items:
                left -= indexed.item_memory[item]
                if left < 0 or math.isinf(indexed.item_costs[item][target]):
                    break
                assignment[item] = target
        yield assignment


def first_fit(indexed: Indexed) -> list[int]:
    """Each item on its cheapest target that still has memory, largest first; the cheapest of all where none has."""
    left = list(indexed.capacity)
    assignment = [0] * len(indexed.items)
    for item in sorted(range(len(indexed.items)), key=lambda i: -indexed.item_memory[i]):
        options = sorted(indexed.allowed(item), key=lambda t: indexed.item_costs[item][t])
        fitting = [t for t in options if indexed.item_memory[item] <= left[indexed.device_of[t]]]
        assignment[item] = (fitting or options)[0]
        left[indexed.device_of[assignment[item]]] -= indexed.item_memory[item]
    return assignment


def list_schedule(indexed: Indexed) -> list[int]:
    """HEFT: blocks by falling upward rank (mean cost to the end of the request), each where it ends first."""
    count = len(indexed.names)
    rank = [0.0] * count
    for block in reversed(range(count)):
        finite = [cost for cost in indexed.costs[block] if math.isfinite(cost)]
        rank[block] = sum(finite) / max(1, len(finite)) + max((rank[s] for s in indexed.successors[block]), default=0.0)
    free = [[0.0] * lanes for lanes in indexed.device_lanes]
    left = list(indexed.capacity)
    done = [0.0] * count
    target_of: dict[int, int] = {}  # item -> target
    for block in sorted(range(count), key=lambda b: (-rank[b], b)):
        item = indexed.item_of[block]
        options = (target_of[item],) if item in target_of else indexed.allowed(item)
        room = [t for t in options if item in target_of or indexed.item_memory[item] <= left[indexed.device_of[t]]]
        ends = [(_end(indexed, block, t, target_of=target_of, done=done, free=free), t) for t in room or options]
        done[block], target = min(ends)
        if item not in target_of:
            target_of[item] = target
            left[indexed.device_of[target]] -= indexed.item_memory[item]
        if not indexed.host[target]:
            lanes = free[indexed.device_of[target]]
            lanes.sort()
            lanes[: indexed.lanes[target]] = [done[block]] * indexed.lanes[target]
    return [target_of[item] for item in range(len(indexed.items))]


def _end(
    indexed: Indexed,
    block: int,
    target: int,
    *,
    target_of: dict[int, int],
    done: Sequence[float],
    free: Sequence[Sequence[float]],
) -> float:
    device = indexed.device_of[target]
    start = 0.0 if indexed.host[target] else sorted(free[device])[indexed.lanes[target] - 1]
    launch = indexed.launch[target]
    for number in indexed.wires_into[block]:
        wire = indexed.wires[number]
        source = target_of.get(indexed.item_of[wire.source], target)
        if source == target:
            launch = 0.0  # it can join the segment of what it reads
        start = max(start, done[wire.source] + wire.times[indexed.device_of[source]][device])
    return start + launch + indexed.costs[block][target]

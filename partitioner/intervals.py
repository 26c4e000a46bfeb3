"""Consecutive runs of a topological order as segments: the best such placement, by a dynamic programme.

Cutting one linear order is not optimal for a graph with branches (Tarnawski et al., NeurIPS 2020), so this promises
nothing: it gives the other solvers a valid start, quickly, on a graph of any size.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from edgert.partitioner.indexed import Indexed

__all__ = ["item_orders", "place_intervals"]

Matrix: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_MOST_CHUNKS = 320
"""Longer orders are joined into that many runs first: the programme is quadratic."""
_MOST_STATES = 256
"""Of which targets are used up."""


def item_orders(indexed: Indexed) -> tuple[tuple[int, ...], ...]:
    """Different topological orders of the items (where groups allow one; else by the mean position of their blocks)."""
    count = len(indexed.items)
    after: list[set[int]] = [set() for _ in range(count)]
    before: list[set[int]] = [set() for _ in range(count)]
    for block, reads in enumerate(indexed.successors):
        for sink in reads:
            a, b = indexed.item_of[block], indexed.item_of[sink]
            if a != b:
                after[a].add(b)
                before[b].add(a)
    mean = [sum(members) / len(members) for members in indexed.items]
    forward = _kahn(after, before, [(m,) for m in mean])
    backward = _kahn(before, after, [(-m,) for m in mean])[::-1]
    depth = [0] * count
    for item in forward:
        depth[item] = max((depth[b] + 1 for b in before[item]), default=0)
    broad = _kahn(after, before, [(depth[i], mean[i]) for i in range(count)])
    # Items that nothing precedes (weights, constants) as late as can be: next to what reads them.
    late = [0] * count
    place = {item: i for i, item in enumerate(forward)}
    for item in forward:
        late[item] = place[item]
    for item in reversed(forward):
        if not before[item] and after[item]:
            late[item] = min(place[b] for b in after[item])
    lazy = _kahn(after, before, [(late[i], mean[i]) for i in range(count)])
    return tuple(dict.fromkeys((tuple(lazy), tuple(backward), tuple(forward), tuple(broad))))


def _kahn(after: Sequence[set[int]], before: Sequence[set[int]], key: Sequence[tuple[float, ...]]) -> list[int]:
    waits = [len(found) for found in before]
    ready = [(key[i], i) for i, count in enumerate(waits) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    done = [False] * len(waits)
    left = sorted(range(len(waits)), key=lambda i: key[i])
    while len(order) < len(waits):
        if not ready:  # groups close a cycle: break it at the first item
            left = [i for i in left if not done[i]]
            heapq.heappush(ready, (key[left[0]], left[0]))
        _, item = heapq.heappop(ready)
        if done[item]:
            continue
        done[item] = True
        order.append(item)
        for sink in after[item]:
            waits[sink] -= 1
            if waits[sink] == 0 and not done[sink]:
                heapq.heappush(ready, (key[sink], sink))
    return order


@dataclass(frozen=True)
class _Line:
    """An order cut into chunks, and what each run [i, j) of them costs."""

    chunks: tuple[tuple[int, ...], ...]
    """Items of each."""
    cost: tuple[Matrix, ...]
    """[target][i, j]; infinite where j <= i, a target refuses an item, or memory is too small."""


def place_intervals(indexed: Indexed, order: Sequence[int]) -> Iterator[list[int]]:
    """Assignments (target of each item) that cut `order` into runs: the best by an estimate, then with fewer devices.

    The estimate of latency adds up the runs (as if none overlapped); that of throughput is exact, but for links.
    """
    classes = sorted(set(indexed.twins))
    members = {c: [t for t, twin in enumerate(indexed.twins) if twin == c] for c in classes}
    reusable = {c: _reusable(indexed, c) for c in classes}
    limits = [0 if reusable[c] else len(members[c]) for c in classes]
    while math.prod(limit + 1 for limit in limits) > _MOST_STATES:
        limits[limits.index(max(limits))] -= 1
    line = _line(indexed, order, classes)
    states = list(itertools.product(*(range(limit + 1) for limit in limits)))
    count = len(line.chunks)
    latency = indexed.problem.objective == "latency"
    best: dict[tuple[int, ...], Matrix] = {}
    choice: dict[tuple[int, ...], tuple[Any, Any]] = {}
    for state in states:
        value = np.full(count + 1, math.inf)
        value[0] = 0.0 if not any(state) else math.inf
        how = np.full(count + 1, -1)
        start = np.zeros(count + 1, dtype=int)
        for k in range(len(classes)):
            if not reusable[classes[k]] and state[k]:
                source = best[(*state[:k], state[k] - 1, *state[k + 1 :])]
                table = source[:, None] + line.cost[k] if latency else np.maximum(source[:, None], line.cost[k])
                _improve(value, how, start, table, k)
        for j in range(1, count + 1) if any(reusable.values()) else ():
            for k, c in enumerate(classes):
                if reusable[c]:
                    column = value[:j] + line.cost[k][:j, j] if latency else np.maximum(value[:j], line.cost[k][:j, j])
                    i = int(np.argmin(column))
                    if column[i] < value[j]:
                        value[j], how[j], start[j] = column[i], k, i
        best[state], choice[state] = value, (how, start)
    for state in sorted(states, key=lambda s: float(best[s][count]))[:8]:
        if math.isfinite(best[state][count]):
            yield _trace(indexed, line, state, choice, classes=classes, members=members, reusable=reusable)


def _reusable(indexed: Indexed, target: int) -> bool:
    """Whether a target may take several runs (under throughput they would add up, which is not modelled)."""
    many = indexed.problem.pieces == "many" and indexed.problem.transfers != "device"
    return indexed.problem.objective == "latency" and (indexed.host[target] or many)


def _improve(value: Matrix, how: Any, start: Any, table: Matrix, k: int) -> None:
    rows = np.argmin(table, axis=0)
    found = table[rows, np.arange(table.shape[1])]
    better = found < value
    value[better], how[better], start[better] = found[better], k, rows[better]


def _trace(
    indexed: Indexed,
    line: _Line,
    state: tuple[int, ...],
    choice: dict[tuple[int, ...], tuple[Any, Any]],
    *,
    classes: Sequence[int],
    members: dict[int, list[int]],
    reusable: dict[int, bool],
) -> list[int]:
    assignment = [0] * len(indexed.items)
    j = len(line.chunks)
    while j > 0:
        how, start = choice[state]
        k, i = int(how[j]), int(start[j])
        target = classes[k]
        if not reusable[target]:
            target = members[target][state[k] - 1]
            state = (*state[:k], state[k] - 1, *state[k + 1 :])
        for chunk in line.chunks[i:j]:
            for item in chunk:
                assignment[item] = target
        j = i
    return assignment


def _line(indexed: Indexed, order: Sequence[int], classes: Sequence[int]) -> _Line:
    size = math.ceil(len(order) / _MOST_CHUNKS)
    chunks = tuple(tuple(order[i : i + size]) for i in range(0, len(order), size))
    count = len(chunks)
    chunk_of = {item: number for number, chunk in enumerate(chunks) for item in chunk}
    memory = _runs([sum(indexed.item_memory[i] for i in chunk) for chunk in chunks])
    crossing = _crossings(indexed, [chunk_of[item] for item in indexed.item_of], count)
    upper = np.tri(count + 1, k=0, dtype=bool)
    tables = []
    for target in classes:
        table = _runs([sum(indexed.item_costs[i][target] for i in chunk) for chunk in chunks])
        if not indexed.host[target]:
            table = table + indexed.launch[target] + crossing
        elif indexed.problem.objective == "latency":
            table = _paths(indexed, [chunk_of[item] for item in indexed.item_of], count, target)
        table = np.where(memory > indexed.capacity[indexed.device_of[target]], math.inf, table)
        table[upper] = math.inf
        tables.append(table)
    return _Line(chunks, tuple(tables))


def _runs(numbers: Sequence[float]) -> Matrix:
    """[i, j] = sum of numbers[i:j], infinite where one of them is."""
    finite = np.array([0.0 if math.isinf(x) else x for x in numbers])
    total = np.concatenate([[0.0], np.cumsum(finite)])
    bad = np.concatenate([[0], np.cumsum([math.isinf(x) for x in numbers])])
    table: Matrix = np.where(bad[None, :] - bad[:, None] > 0, math.inf, total[None, :] - total[:, None])
    return table


def _crossings(indexed: Indexed, chunk: Sequence[int], count: int) -> Matrix:
    """[i, j] = time of the distinct values that the run [i, j) reads from outside or makes for outside."""
    # Each value adds a rectangle of (i, j) cells; corners are summed up at the end.
    corners = np.zeros((count + 2, count + 2))

    def add(i0: int, i1: int, j0: int, j1: int, time: float) -> None:
        """Every i0 <= i < i1 and j0 <= j < j1."""
        if i0 < i1 and j0 < j1:
            corners[i0, j0] += time
            corners[i1, j0] -= time
            corners[i0, j1] -= time
            corners[i1, j1] += time

    links = len(indexed.device_of) > 1 and indexed.problem.transfers == "link"
    for wire in indexed.wires:
        times = [time for row in wire.times for time in row if 0.0 < time < math.inf]
        if not times:
            continue
        time = min(times) if links else max(times)
        home = chunk[wire.source]
        readers = sorted({chunk[sink] for sink in wire.sinks} - {home})
        if not readers:
            continue
        # read: i > home (or before it, in a cyclic order of groups), first reader r in [i, j)
        previous = home
        for reader in (r for r in readers if r > home):
            add(previous + 1, reader + 1, reader + 1, count + 1, time)
            previous = reader
        if not links:  # made: i <= home < j <= last reader
            add(0, home + 1, home + 1, readers[-1] + 1, time)
    table: Matrix = corners.cumsum(axis=0).cumsum(axis=1)[: count + 1, : count + 1]
    return np.maximum(table, 0.0)


def _paths(indexed: Indexed, chunk: Sequence[int], count: int, target: int) -> Matrix:
    """[i, j] = longest path through the blocks of the run [i, j), on a host. Only short runs are filled in."""
    table = np.full((count + 1, count + 1), math.inf)
    blocks: list[list[int]] = [[] for _ in range(count)]
    for block, number in enumerate(chunk):
        blocks[number].append(block)
    most = max(16, 20_000 // count)
    for i in range(count):
        done: dict[int, float] = {}
        longest = 0.0
        for j in range(i, count if count <= most else min(count, i + most)):
            for block in blocks[j]:
                start = max((done.get(b, 0.0) for b in indexed.predecessors[block]), default=0.0)
                done[block] = start + indexed.costs[block][target]
                longest = max(longest, done[block])
            table[i, j + 1] = longest
    return table

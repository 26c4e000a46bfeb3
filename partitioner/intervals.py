"""Consecutive runs of a topological order as segments: the best such placement, by a dynamic programme.

Cutting one linear order is not optimal for a graph with branches (Tarnawski et al., NeurIPS 2020), so this promises
nothing: it gives the other solvers a valid start, quickly, on a graph of any size.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from edgert.partitioner.indexed import Indexed

__all__ = ["item_graph", "item_orders", "place_intervals", "random_orders", "sums_of_runs"]

Matrix: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_MOST_CHUNKS = 320
"""Longer orders are joined into that many runs first: the programme is quadratic."""
_BISECTIONS = 14
_MOST_STATES = 256
"""Of which targets are used up."""


def item_graph(indexed: Indexed) -> tuple[list[set[int]], list[set[int]]]:
    """Items that read from each item, and items that each reads from."""
    after: list[set[int]] = [set() for _ in indexed.items]
    before: list[set[int]] = [set() for _ in indexed.items]
    for block, reads in enumerate(indexed.successors):
        for sink in reads:
            a, b = indexed.item_of[block], indexed.item_of[sink]
            if a != b:
                after[a].add(b)
                before[b].add(a)
    return after, before


def item_orders(indexed: Indexed) -> tuple[tuple[int, ...], ...]:
    """Different topological orders of the items (where groups allow one; else by the mean position of their blocks)."""
    count = len(indexed.items)
    after, before = item_graph(indexed)
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


def random_orders(indexed: Indexed, count: int) -> Iterator[list[int]]:
    """Topological orders that follow each branch to its end, branches in random order (fixed seed); none where groups
    close a cycle.
    """
    chance = random.Random(count)
    after, before = item_graph(indexed)
    for _ in range(count):
        waits = [len(found) for found in before]
        ready = [item for item, waiting in enumerate(waits) if not waiting]
        chance.shuffle(ready)
        order: list[int] = []
        while ready:
            order.append(ready.pop())
            free = []
            for sink in sorted(after[order[-1]]):
                waits[sink] -= 1
                if not waits[sink]:
                    free.append(sink)
            chance.shuffle(free)
            ready += free
        if len(order) < len(waits):
            return
        yield order


def _kahn(after: Sequence[set[int]], before: Sequence[set[int]], key: Sequence[tuple[float, ...]]) -> list[int]:
    """The topological order that takes the ready item of least key each time."""
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
    work = _Runs(indexed, order)
    found = work.assignments()
    yield from found
    hosts = [k for k, c in enumerate(work.classes) if indexed.host[c]]
    if indexed.problem.objective == "throughput" and len(hosts) == 1:
        # The blocks of a host need not be one run: bisect for the least T at which all workers' runs stay within T and
        # so does what is left to the host.
        high = min((work.top(a) for a in found), default=work.cost[hosts[0]][0, -1])
        low = high / 1024
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            assignment = work.within(middle, hosts[0])
            if assignment is None:
                low = middle
            else:
                high = middle
                yield assignment


class _Runs:
    """The dynamic programme over (how many targets of each class are used up, how far the order is placed)."""

    def __init__(self, indexed: Indexed, order: Sequence[int]) -> None:
        self.indexed = indexed
        self.classes = sorted(set(indexed.twins))
        self.members = {c: [t for t, twin in enumerate(indexed.twins) if twin == c] for c in self.classes}
        line = _line(indexed, order, self.classes)
        self.chunks, self.cost = line.chunks, line.cost

    def _states(self, reusable: Sequence[bool]) -> list[tuple[int, ...]]:
        limits = [0 if again else len(self.members[c]) for c, again in zip(self.classes, reusable, strict=True)]
        while math.prod(limit + 1 for limit in limits) > _MOST_STATES:
            limits[limits.index(max(limits))] -= 1
        return list(itertools.product(*(range(limit + 1) for limit in limits)))

    def assignments(self) -> list[list[int]]:
        """The best end in each of the eight best states."""
        adds = self.indexed.problem.objective == "latency"
        reusable = [_reusable(self.indexed, c) for c in self.classes]
        best: dict[tuple[int, ...], Matrix] = {}
        choice: dict[tuple[int, ...], _Choice] = {}
        for state in self._states(reusable):
            value, picked = self._workers(state, best, self.cost, reusable, adds=adds)
            if any(reusable):
                self._again(value, picked, reusable)
            best[state], choice[state] = value, picked
        ranked = sorted(best, key=lambda state: float(best[state][-1]))[:8]
        return [self._trace(state, choice, reusable) for state in ranked if math.isfinite(best[state][-1])]

    def within(self, limit: float, host: int) -> list[int] | None:
        """Workers' runs of at most `limit` that leave the host at most that; None when there are none."""
        reusable = [k == host for k in range(len(self.classes))]
        tables = [np.where(table <= limit, 0.0, math.inf) for table in self.cost]
        row = np.concatenate([[0.0], np.diagonal(self.cost[host], offset=1)])
        finite = np.where(np.isinf(row), 0.0, row)
        never = 1e3 * (1.0 + limit + float(finite.sum()))  # stands for infinity, which could not be taken off again
        total = np.cumsum(np.where(np.isinf(row), never, row))
        best: dict[tuple[int, ...], Matrix] = {}
        choice: dict[tuple[int, ...], _Choice] = {}
        for state in self._states(reusable):
            value, picked = self._workers(state, best, tables, reusable, adds=True)
            spare = value - total
            least = np.minimum.accumulate(spare)
            since = np.maximum.accumulate(np.where(spare <= least, np.arange(len(spare)), 0))
            hosted = least + total
            better = (since < np.arange(len(spare))) & (hosted < value)
            value[better], picked.how[better], picked.start[better] = hosted[better], host, since[better]
            best[state], choice[state] = value, picked
            if value[-1] <= limit:
                return self._trace(state, choice, reusable)
        return None

    def top(self, assignment: Sequence[int]) -> float:
        """Largest load of an assignment into one run a target."""
        tops = []
        for k, c in enumerate(self.classes):
            for t in self.members[c]:
                mine = [j for j, chunk in enumerate(self.chunks) if assignment[chunk[0]] == t]
                if mine:
                    tops.append(float(self.cost[k][mine[0], mine[-1] + 1]))
        return max(tops)

    def _workers(
        self,
        state: tuple[int, ...],
        best: dict[tuple[int, ...], Matrix],
        tables: Sequence[Matrix],
        reusable: Sequence[bool],
        *,
        adds: bool,
    ) -> tuple[Matrix, _Choice]:
        """Best ends where the last run is on a target of a class that is used up by one more."""
        count = len(self.chunks) + 1
        value = np.full(count, math.inf)
        value[0] = math.inf if any(state) else 0.0
        picked = _Choice(np.full(count, -1), np.zeros(count, dtype=int))
        for k, table in enumerate(tables):
            if not reusable[k] and state[k]:
                source = best[(*state[:k], state[k] - 1, *state[k + 1 :])][:, None]
                ends = source + table if adds else np.maximum(source, table)
                rows = np.argmin(ends, axis=0)
                found = ends[rows, np.arange(count)]
                better = found < value
                value[better], picked.how[better], picked.start[better] = found[better], k, rows[better]
        return value, picked

    def _again(self, value: Matrix, picked: _Choice, reusable: Sequence[bool]) -> None:
        """Runs on targets that may take several."""
        for j in range(1, len(value)):
            for k, again in enumerate(reusable):
                if again:
                    ends = value[:j] + self.cost[k][:j, j]
                    i = int(np.argmin(ends))
                    if ends[i] < value[j]:
                        value[j], picked.how[j], picked.start[j] = ends[i], k, i

    def _trace(
        self, state: tuple[int, ...], choice: dict[tuple[int, ...], _Choice], reusable: Sequence[bool]
    ) -> list[int]:
        assignment = [0] * len(self.indexed.items)
        j = len(self.chunks)
        while j > 0:
            k, i = int(choice[state].how[j]), int(choice[state].start[j])
            target = self.classes[k]
            if not reusable[k]:
                target = self.members[target][state[k] - 1]
                state = (*state[:k], state[k] - 1, *state[k + 1 :])
            for chunk in self.chunks[i:j]:
                for item in chunk:
                    assignment[item] = target
            j = i
        return assignment


@dataclass(frozen=True, slots=True)
class _Choice:
    """How each end was reached: class of the last run (-1: not), and where it starts."""

    how: Any
    start: Any


def _reusable(indexed: Indexed, target: int) -> bool:
    """Whether a target may take several runs (for latency; loads are bisected instead)."""
    many = indexed.problem.pieces == "many" and indexed.problem.transfers != "device"
    return indexed.problem.objective == "latency" and (indexed.host[target] or many)


def _line(indexed: Indexed, order: Sequence[int], classes: Sequence[int]) -> _Line:
    size = math.ceil(len(order) / _MOST_CHUNKS)
    chunks = tuple(tuple(order[i : i + size]) for i in range(0, len(order), size))
    count = len(chunks)
    chunk_of = {item: number for number, chunk in enumerate(chunks) for item in chunk}
    memory = sums_of_runs([sum(indexed.item_memory[i] for i in chunk) for chunk in chunks])
    crossing = _crossings(indexed, [chunk_of[item] for item in indexed.item_of], count)
    upper = np.tri(count + 1, k=0, dtype=bool)
    tables = []
    for target in classes:
        table = sums_of_runs([sum(indexed.item_costs[i][target] for i in chunk) for chunk in chunks])
        if not indexed.host[target]:
            table = table + indexed.launch[target] + crossing
        elif indexed.problem.objective == "latency":
            table = _paths(indexed, [chunk_of[item] for item in indexed.item_of], count, target)
        table = np.where(memory > indexed.capacity[indexed.device_of[target]], math.inf, table)
        table[upper] = math.inf
        tables.append(table)
    return _Line(chunks, tuple(tables))


def sums_of_runs(numbers: Sequence[float]) -> Matrix:
    """[i, j] = sum of numbers[i:j], 0 where there are none; each added up from its own i, so that a large number spoils
    no sum that it is not part of.
    """
    count = len(numbers)
    table = np.zeros((count + 1, count + 1))
    table[:-1, 1:] = np.triu(np.broadcast_to(np.array(numbers, dtype=float), (count, count))).cumsum(axis=1)
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

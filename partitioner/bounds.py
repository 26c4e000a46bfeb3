"""What no placement can beat, where each accelerator runs one piece: the pieces along one path through the graph.

A request passes each block of a path after the one before. Where the pieces have an order, the path visits each
accelerator once, in one run of blocks: it waits for the work of that run and for what crosses at its ends, and a run
holds no more than the memory allows. So the cheapest way to cut the path alone into runs and blocks on the host, with
no more runs than accelerators, bounds the latency from below: O(n^2 k) for n blocks and k accelerators.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from edgert.partitioner.indexed import Indexed
from edgert.partitioner.intervals import sums_of_runs
from edgert.partitioner.quotient import fits_quotient

__all__ = ["pieces_bound"]

Matrix: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_MOST_BLOCKS = 1_500
"""Of a path: the programme is quadratic."""


def pieces_bound(indexed: Indexed) -> float:
    """The best bound of the longest paths by time, by memory, and by both; 0 where the rules are others."""
    if not fits_quotient(indexed):
        return 0.0
    workers = [t for t, host in enumerate(indexed.host) if not host]
    cheapest = [min(costs) for costs in indexed.costs]
    if not workers:
        return 0.0
    whole, all_bytes = math.fsum(cheapest) or 1.0, math.fsum(indexed.memory) or 1.0
    weights: tuple[Callable[[int], float], ...] = (
        lambda block: cheapest[block],
        lambda block: indexed.memory[block],
        lambda block: cheapest[block] / whole + indexed.memory[block] / all_bytes,
    )
    paths = {tuple(_longest(indexed, weight)) for weight in weights}
    return max(_cut(indexed, path, workers) for path in paths if len(path) <= _MOST_BLOCKS) if paths else 0.0


def _longest(indexed: Indexed, weight: Callable[[int], float]) -> list[int]:
    """Blocks of the path of greatest weight, in order."""
    heavy = [0.0] * len(indexed.names)
    before = [-1] * len(indexed.names)
    for block, reads in enumerate(indexed.predecessors):
        latest = max(reads, key=lambda b: heavy[b], default=-1)
        before[block] = latest
        heavy[block] = weight(block) + (heavy[latest] if latest >= 0 else 0.0)
    block = max(range(len(heavy)), key=lambda b: heavy[b])
    path = []
    while block >= 0:
        path.append(block)
        block = before[block]
    return path[::-1]


def _cut(indexed: Indexed, path: Sequence[int], workers: Sequence[int]) -> float:
    """Least time along the path."""
    count = len(path)
    hosts = [t for t, host in enumerate(indexed.host) if host]
    hosted = np.array([min(indexed.costs[b][t] + indexed.launch[t] for t in hosts) for b in path])
    work = [min(indexed.costs[b][t] for t in workers) for b in path]
    run = sums_of_runs(work) + min(indexed.launch[t] for t in workers)
    room = max(indexed.capacity[indexed.device_of[t]] for t in workers)
    run[sums_of_runs([indexed.memory[b] for b in path]) > room] = math.inf
    run += _crossing(indexed, path)
    joined = np.array([False, *(indexed.item_of[a] == indexed.item_of[b] for a, b in itertools.pairwise(path)), False])
    run[joined, :] = run[:, joined] = math.inf
    run[np.tri(count + 1, dtype=bool)] = math.inf
    reached = np.concatenate([[0.0], np.cumsum(hosted)])
    best = float(reached[-1])
    for _ in workers:
        after = (reached[:, None] + run).min(axis=0)  # one run more, the last block in it
        for j in range(count):  # and then blocks on the host
            after[j + 1] = min(after[j + 1], after[j] + hosted[j])
        reached = np.minimum(reached, after)
        best = min(best, float(reached[-1]))
    return best


def _crossing(indexed: Indexed, path: Sequence[int]) -> Matrix:
    """[i, j] = least time of the distinct values that the run [i, j) of the path reads from the path's other blocks or
    makes for them.
    """
    at = {block: position for position, block in enumerate(path)}
    # Each value adds rectangles of (i, j) cells; their corners are summed up at the end.
    corners = np.zeros((len(path) + 2, len(path) + 2))
    total = 0.0
    for wire in indexed.wires:
        home = at.get(wire.source)
        readers = sorted(at[sink] for sink in wire.sinks if sink in at)
        time = min((time for row in wire.times for time in row if time > 0), default=0.0)
        if home is None or not readers or not time:
            continue
        total += (1 + len(readers)) * time
        before = home
        for reader in readers:  # read: the run begins behind the source, this is its first reader
            _add(corners, (before + 1, reader + 1), (reader + 1, len(path) + 1), time)
            before = reader
        _add(corners, (0, home + 1), (home + 1, readers[-1] + 1), time)  # made: it ends before the last reader
    table: Matrix = corners.cumsum(axis=0).cumsum(axis=1)[: len(path) + 1, : len(path) + 1]
    # What was added and taken off again leaves a rest, which must not count.
    return np.maximum(table - 1e-12 * total, 0.0)


def _add(corners: Matrix, i: tuple[int, int], j: tuple[int, int], time: float) -> None:
    """`time` in every cell with i[0] <= i < i[1] and j[0] <= j < j[1]."""
    corners[i[0], j[0]] += time
    corners[i[1], j[0]] -= time
    corners[i[0], j[1]] -= time
    corners[i[1], j[1]] += time

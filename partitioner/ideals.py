"""Throughput with one piece a target: a dynamic programme over ideals (downward-closed sets), exact.

Pieces that have an order cut the graph along a chain of ideals, so the smallest largest load follows from ideal to
larger ideal, one target at a time (Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
Operators", NeurIPS 2020). Where a graph has too many ideals the programme is not used: joining blocks to get
fewer would lose the proof; `integer` takes over.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from edgert.partitioner.indexed import Indexed
from edgert.partitioner.intervals import item_graph

__all__ = ["fits_ideals", "ideals_of", "place_ideals"]

Matrix: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

MOST_IDEALS = 700
"""The programme is quadratic in their number, times the values that flow."""
_MOST_STATES = 512
"""Of which targets are used up."""


def fits_ideals(indexed: Indexed) -> bool:
    """Whether `place_ideals` states the problem's rules: a piece a target, each on a device of its own, no host."""
    problem = indexed.problem
    rules = problem.objective == "throughput" and problem.pieces == "one" and problem.transfers in ("device", "free")
    plain = problem.most_energy_j is None and not any(indexed.host)
    return rules and plain and len(set(indexed.device_of)) == len(indexed.device_of)


def ideals_of(after: Sequence[set[int]], before: Sequence[set[int]], most: int = MOST_IDEALS) -> list[int] | None:
    """Every downward-closed set as a bit mask, smaller sets first; None when there are more than `most`."""
    found = {0: None}
    layer = [0]
    while layer:
        following: dict[int, None] = {}
        for ideal in layer:
            for item, reads in enumerate(before):
                if not ideal >> item & 1 and all(ideal >> b & 1 for b in reads):
                    following[ideal | 1 << item] = None
        found |= following
        if len(found) > most:
            return None
        layer = list(following)
    # Groups that close a cycle leave items that no ideal takes.
    return list(found) if max(found).bit_count() == len(after) else None


def place_ideals(indexed: Indexed) -> tuple[list[int] | None, float] | None:
    """The optimal assignment and its cost, (None, inf) when there is none, or None where there are too many ideals.

    Requires `fits_ideals`.
    """
    ideals = ideals_of(*item_graph(indexed))
    classes = sorted(set(indexed.twins))
    members = {c: [t for t, twin in enumerate(indexed.twins) if twin == c] for c in classes}
    states = list(itertools.product(*(range(len(members[c]) + 1) for c in classes)))
    if ideals is None or len(states) > _MOST_STATES:
        return None
    inside = np.array([[ideal >> item & 1 for item in range(len(indexed.items))] for ideal in ideals], dtype=np.float64)
    loads = [_loads(indexed, inside, c) for c in classes]
    best: dict[tuple[int, ...], Matrix] = {}
    how: dict[tuple[int, ...], tuple[Matrix, Matrix]] = {}
    for state in states:
        value = np.full(len(ideals), math.inf)
        value[0] = math.inf if any(state) else 0.0
        picked, start = np.full(len(ideals), -1), np.zeros(len(ideals), dtype=int)
        for k, used in enumerate(state):
            if used:
                source = best[(*state[:k], used - 1, *state[k + 1 :])]
                ends = np.maximum(source[:, None], loads[k])
                rows = np.argmin(ends, axis=0)
                least = ends[rows, np.arange(len(ideals))]
                better = least < value
                value[better], picked[better], start[better] = least[better], k, rows[better]
        best[state], how[state] = value, (picked, start)
    most = indexed.problem.most_segments
    allowed = [state for state in states if most is None or sum(state) <= most]
    state = min(allowed, key=lambda s: float(best[s][-1]))
    if math.isinf(best[state][-1]):
        return None, math.inf
    return _trace(ideals, state, how, [members[c] for c in classes], len(indexed.items)), float(best[state][-1])


def _loads(indexed: Indexed, inside: Matrix, target: int) -> Matrix:
    """[smaller ideal, larger ideal] -> load of the target with what lies between; infinite where it cannot be."""
    share = indexed.lanes[target] / indexed.device_lanes[indexed.device_of[target]]
    costs = np.array([row[target] for row in indexed.item_costs])
    finite = np.where(np.isinf(costs), 0.0, costs) * share
    total = inside @ finite
    refused = inside @ np.isinf(costs)
    memory = inside @ np.array(indexed.item_memory)
    table: Matrix = total[None, :] - total[:, None] + indexed.launch[target] * share
    if indexed.problem.transfers == "device":
        for wire in indexed.wires:
            time = max(max(row) for row in wire.times)
            home = indexed.item_of[wire.source]
            sinks = sorted({indexed.item_of[sink] for sink in wire.sinks} - {home})
            if not sinks or time == 0.0:
                continue
            made = inside[:, home]
            read = inside[:, sinks].sum(axis=1)
            enters = made[:, None] * (read[None, :] > read[:, None])
            leaves = (made[None, :] - made[:, None]) * (read < len(sinks))[None, :]
            table += time * (enters + leaves)
    sizes = inside.sum(axis=1)
    subset = inside @ inside.T >= sizes[:, None] - 0.5
    room = memory[None, :] - memory[:, None] <= indexed.capacity[indexed.device_of[target]]
    fits = subset & (sizes[None, :] > sizes[:, None]) & (refused[None, :] - refused[:, None] < 0.5) & room
    return np.where(fits, table, math.inf)


def _trace(
    ideals: Sequence[int],
    state: tuple[int, ...],
    how: dict[tuple[int, ...], tuple[Matrix, Matrix]],
    members: Sequence[Sequence[int]],
    count: int,
) -> list[int]:
    assignment = [0] * count
    at = len(ideals) - 1
    while at > 0:
        k, before = int(how[state][0][at]), int(how[state][1][at])
        target = members[k][state[k] - 1]
        for item in range(count):
            if (ideals[at] & ~ideals[before]) >> item & 1:
                assignment[item] = target
        state = (*state[:k], state[k] - 1, *state[k + 1 :])
        at = before
    return assignment

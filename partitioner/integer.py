"""Integer programmes, solved by OR-Tools' CP-SAT: their frame, and throughput for any split.

The throughput programme follows Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
Operators" (NeurIPS 2020): a binary for each block and target, one for each value that a device reads or hands out, and
the largest load as the objective. Latency is in `timeline` (one piece a device) and `schedule` (any number).

Times are rounded down to ticks, so the bound holds for the true costs; a start is always given. OR-Tools is imported
when first used: a machine that only runs plans does not need it.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgert.partitioner.indexed import Indexed

__all__ = ["Answer", "Programme", "add_device_wire", "available", "lead_s", "solve_throughput"]

_log = logging.getLogger(__name__)

TICKS = 1 << 27
"""Ticks in the cost of the start: rounding down loses less than 1e-8 of it a block."""
_MOST_UNITS = 1 << 40
"""Memory of a device, in the programme's own unit: sums over thousands of blocks stay whole."""
_WORKERS = 2
_SEED = 1
_CLOSING_S = 0.3
"""CP-SAT overruns its limit by about that."""
_LOADING_S = 1.2
"""OR-Tools takes that long to load while local search goes on in another thread."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a programme found in its time."""

    assignment: list[int] | None
    """Target of each item; None when nothing was found."""
    bound: float
    """No assignment costs less; 0 when nothing is known."""
    infeasible: bool
    """True when it was proved that there is none at all."""


def available() -> bool:
    """Whether OR-Tools is installed."""
    return importlib.util.find_spec("ortools") is not None


def lead_s() -> float:
    """Seconds before a programme can be stated: OR-Tools is loaded once in a process."""
    return 0.0 if "ortools.sat.python.cp_model" in sys.modules else _LOADING_S


def _unit(sizes: Sequence[float], capacity: float) -> float:
    """Memory that a programme counts as 1: a byte where that is exact, else a small part of the capacity, since sizes
    are rounded down.
    """
    whole = capacity <= _MOST_UNITS and all(size.is_integer() for size in sizes)
    return 1.0 if whole else max(capacity / _MOST_UNITS, sys.float_info.min)


class Programme:
    """A CP-SAT model with the choice of a target for each item, and the units of its numbers."""

    def __init__(self, indexed: Indexed, scale: float) -> None:
        """Make the choices; `scale` is time a tick."""
        from ortools.sat.python import cp_model

        self.cp = cp_model
        self.model: Any = cp_model.CpModel()
        self.indexed = indexed
        self.scale = scale
        self.chosen: list[dict[int, Any]] = []
        """[item][target] -> whether it is there."""
        self.hints: dict[int, int] = {}
        for item in range(len(indexed.items)):
            found = {t: self.model.new_bool_var("") for t in indexed.allowed(item)}
            self.model.add_exactly_one(found.values())
            self.chosen.append(found)
        self._add_memory()

    def ticks(self, seconds: float) -> int:
        """Whole ticks in a time, rounded down; a time beyond the horizon counts as just beyond."""
        return math.floor(min(seconds / self.scale, 4.0 * TICKS))

    def at(self, item: int, target: int) -> Any:
        """Whether the item is on the target; 0 where it cannot be."""
        return self.chosen[item].get(target, 0)

    def on_device(self, item: int, device: int) -> Any:
        """Whether the item is on some target of the device."""
        return sum(var for t, var in self.chosen[item].items() if self.indexed.device_of[t] == device)

    def _add_memory(self) -> None:
        indexed = self.indexed
        for d, capacity in enumerate(indexed.capacity):
            if math.isfinite(capacity) and math.fsum(indexed.item_memory) > capacity:
                unit = _unit(indexed.item_memory, capacity)
                most = math.floor(capacity / unit)
                held = [
                    math.floor(min(indexed.item_memory[i] / unit, 2.0 * most + 1.0)) * var
                    for i, found in enumerate(self.chosen)
                    for t, var in found.items()
                    if indexed.device_of[t] == d
                ]
                self.model.add(sum(held) <= most)

    def used_targets(self, start: Sequence[int]) -> list[Any]:
        """[target] -> at least 1 if any item is on it."""
        found = []
        for t in range(len(self.indexed.device_of)):
            var = self.model.new_bool_var("")
            for item in range(len(self.chosen)):
                if t in self.chosen[item]:
                    self.model.add_implication(self.chosen[item][t], var)
            self.hints[var.index] = int(t in start)
            found.append(var)
        return found

    def add_limits(self, used: Sequence[Any]) -> None:
        """Limits on segments, counting one for each target used, and on energy, leaving out launches."""
        indexed = self.indexed
        segments = indexed.problem.most_segments
        if segments is not None:
            hosted = [
                len(indexed.items[item]) * var
                for item, found in enumerate(self.chosen)
                for t, var in found.items()
                if indexed.host[t]
            ]
            workers = [var for t, var in enumerate(used) if not indexed.host[t]]
            self.model.add(sum(hosted) + sum(workers) <= segments)
        most = indexed.problem.most_energy_j
        if most is not None:
            unit = max(most, 1e-300) / TICKS
            terms = [
                math.floor(min(indexed.watts[t] * indexed.item_costs[item][t] / unit, 4.0 * TICKS)) * var
                for item, found in enumerate(self.chosen)
                for t, var in found.items()
            ]
            self.model.add(sum(terms) <= TICKS)

    def order_twins(self, start: Sequence[int]) -> None:
        """Of targets that do not differ, an item uses the k-th only if an earlier item uses the one before."""
        indexed = self.indexed
        classes: dict[int, list[int]] = {}
        for t, twin in enumerate(indexed.twins):
            classes.setdefault(twin, []).append(t)
        for members in classes.values():
            used_before: dict[int, Any] = {}
            for item in range(len(indexed.items)):
                now: dict[int, Any] = {}
                for k, t in enumerate(members[:-1]):
                    # Cumulative "some item up to here is on t", kept as a variable of its own to stay linear in size.
                    var = self.model.new_bool_var("")
                    before = used_before.get(t, 0)
                    self.model.add(var <= before + self.at(item, t))
                    now[t] = var
                    self.hints[var.index] = int(any(start[i] == t for i in range(item + 1)))
                    later = members[k + 1]
                    if later in self.chosen[item]:
                        self.model.add(self.chosen[item][later] <= before)
                used_before = now

    def hint(self, start: Sequence[int]) -> None:
        """Start from that assignment."""
        for item, found in enumerate(self.chosen):
            for t, var in found.items():
                self.model.add_hint(var, int(start[item] == t))
        for number, value in self.hints.items():
            self.model.add_hint(self.model.get_int_var_from_proto_index(number), value)

    def solve(self, objective: Any, left_s: Callable[[], float]) -> Answer:
        """Minimise `objective` (in ticks) in the seconds that are left; where that are none, find nothing."""
        limit_s = left_s() - _CLOSING_S
        if limit_s <= 0:
            return Answer(None, 0.0, False)
        self.model.minimize(objective)
        solver = self.cp.CpSolver()
        solver.parameters.max_time_in_seconds = limit_s
        solver.parameters.num_workers = _WORKERS
        solver.parameters.random_seed = _SEED
        solver.parameters.linearization_level = 2
        solver.parameters.cp_model_probing_level = 0  # takes longer than the search on a thousand blocks
        solver.parameters.max_presolve_iterations = 1
        status = solver.solve(self.model)
        _log.debug("CP-SAT: %s in %.2f s", solver.status_name(status), solver.wall_time)
        if status == self.cp.INFEASIBLE:
            return Answer(None, math.inf, True)
        bound = max(0.0, solver.best_objective_bound * self.scale)
        if status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            return Answer(None, bound, False)
        found = [next(t for t, var in chosen.items() if solver.value(var)) for chosen in self.chosen]
        return Answer(found, bound, False)


def solve_throughput(indexed: Indexed, start: Sequence[int] | None, cost: float, left_s: Callable[[], float]) -> Answer:
    """The smallest largest load, from the valid assignment `start` of that cost.

    Args:
        indexed: the problem.
        start: None when no valid assignment is known.
        cost: of `start`, else one that some assignment is known not to exceed, if there is any.
        left_s: seconds that are left; asked when the programme is stated.

    Where each segment has a launch cost, or their number is limited, 'many' is bounded from below: one segment is
    counted for each target. The caller evaluates what it gets.
    """
    if cost <= 0.0:
        return Answer(None if start is None else list(start), 0.0, False)
    programme = Programme(indexed, cost / TICKS)
    model = programme.model
    hinted = start is not None
    began = renamed(indexed, start) if start is not None else [indexed.allowed(i)[0] for i in range(len(indexed.items))]
    programme.order_twins(began)
    top = model.new_int_var(0, 2 * TICKS, "")
    used = programme.used_targets(began)
    for load in _loads(programme, used, began):
        model.add(load <= top)
    if indexed.problem.pieces != "many":
        _add_convexity(programme, began)
    if indexed.problem.pieces == "one":
        _add_order(programme)
    programme.add_limits(used)
    if hinted:
        programme.hint(began)
    return programme.solve(top, left_s)


def renamed(indexed: Indexed, start: Sequence[int]) -> list[int]:
    """The same assignment with twins exchanged so that the items use them in order."""
    names: dict[int, int] = {}
    queues: dict[int, list[int]] = {}
    for t, twin in enumerate(indexed.twins):
        queues.setdefault(twin, []).append(t)
    for target in start:
        if target not in names:
            names[target] = queues[indexed.twins[target]].pop(0)
    return [names[target] for target in start]


def _loads(programme: Programme, used: Sequence[Any], start: Sequence[int]) -> list[Any]:
    """One linear expression in ticks for each device and link."""
    indexed = programme.indexed
    on_device = indexed.problem.transfers == "device"
    parts: dict[tuple[int, int], list[Any]] = {}
    for item, found in enumerate(programme.chosen):
        for t, var in found.items():
            d = indexed.device_of[t]
            share = indexed.lanes[t] / indexed.device_lanes[d]
            cost = indexed.item_costs[item][t] + (
                indexed.launch[t] * len(indexed.items[item]) if indexed.host[t] else 0.0
            )
            parts.setdefault((d, d), []).append(programme.ticks(cost * share) * var)
    for t, var in enumerate(used):
        d = indexed.device_of[t]
        if not indexed.host[t] and indexed.launch[t]:
            share = indexed.lanes[t] / indexed.device_lanes[d]
            parts.setdefault((d, d), []).append(programme.ticks(indexed.launch[t] * share) * var)
    if indexed.problem.transfers != "free":
        host = {indexed.device_of[t] for t, is_host in enumerate(indexed.host) if is_host}
        for wire in indexed.wires:
            home = indexed.item_of[wire.source]
            sinks = sorted({indexed.item_of[s] for s in wire.sinks} - {home})
            if not sinks:
                continue
            if on_device:
                add_device_wire(programme, wire.times, home, sinks, host=host, parts=parts, start=start)
            else:
                _add_link_wire(programme, wire.times, home, sinks, parts=parts, start=start)
    return [sum(found) for found in parts.values()]


def add_device_wire(
    programme: Programme,
    times: Sequence[Sequence[float]],
    home: int,
    sinks: Sequence[int],
    *,
    host: set[int],
    parts: dict[tuple[int, int], list[Any]],
    start: Sequence[int],
) -> None:
    model, indexed = programme.model, programme.indexed
    began = [indexed.device_of[t] for t in start]
    ticks = programme.ticks(max(max(row) for row in times))
    if ticks == 0:
        return
    for d in range(len(indexed.capacity)):
        if d in host:
            continue
        reads, makes = model.new_bool_var(""), model.new_bool_var("")
        here = programme.on_device(home, d)
        for sink in sinks:
            there = programme.on_device(sink, d)
            model.add(reads >= there - here)
            model.add(makes >= here - there)
        programme.hints[reads.index] = int(began[home] != d and any(began[s] == d for s in sinks))
        programme.hints[makes.index] = int(began[home] == d and any(began[s] != d for s in sinks))
        parts.setdefault((d, d), []).append(ticks * (reads + makes))


def _add_link_wire(
    programme: Programme,
    times: Sequence[Sequence[float]],
    home: int,
    sinks: Sequence[int],
    *,
    parts: dict[tuple[int, int], list[Any]],
    start: Sequence[int],
) -> None:
    model, indexed = programme.model, programme.indexed
    began = [indexed.device_of[t] for t in start]
    for a, row in enumerate(times):
        for b, seconds in enumerate(row):
            if seconds == 0.0:
                continue
            if math.isinf(seconds):
                for sink in sinks:
                    model.add(programme.on_device(home, a) + programme.on_device(sink, b) <= 1)
                continue
            moved = model.new_bool_var("")
            for sink in sinks:
                model.add(moved >= programme.on_device(home, a) + programme.on_device(sink, b) - 1)
            programme.hints[moved.index] = int(began[home] == a and any(began[s] == b for s in sinks))
            parts.setdefault((a, b), []).append(programme.ticks(seconds) * moved)


def _add_convexity(programme: Programme, start: Sequence[int]) -> None:
    """No path leaves a worker's blocks and comes back: `left` says that a block is beyond them on some path."""
    indexed, model = programme.indexed, programme.model
    began = indexed.spread(start)
    for t, host in enumerate(indexed.host):
        if host:
            continue
        left: list[Any] = [0] * len(indexed.names)
        was = [False] * len(indexed.names)
        for block, before in enumerate(indexed.predecessors):
            if not before:
                continue
            item = indexed.item_of[block]
            here = programme.at(item, t)
            left[block] = model.new_bool_var("")
            for b in before:
                model.add(left[block] >= left[b])
                model.add(left[block] >= programme.at(indexed.item_of[b], t) - here)
                was[block] = was[block] or was[b] or (began[b] == t and began[block] != t)
            if not isinstance(here, int):
                model.add(left[block] + here <= 1)
            programme.hints[left[block].index] = int(was[block])


def _add_order(programme: Programme) -> None:
    """The pieces have an order: each block has a rank that never falls along a flow, odd and its own for each piece."""
    indexed, model = programme.indexed, programme.model
    workers = [t for t, host in enumerate(indexed.host) if not host]
    last = 2 * len(workers)
    ranks = [model.new_int_var(0, last, "") for _ in indexed.names]
    turns = {t: model.new_int_var(0, len(workers) - 1, "") for t in workers}
    model.add_all_different(turns.values())
    for block, before in enumerate(indexed.predecessors):
        for t, var in programme.chosen[indexed.item_of[block]].items():
            if t in turns:
                model.add(ranks[block] == 2 * turns[t] + 1).only_enforce_if(var)
            else:
                # A host's block is even, so it cannot lie between two blocks of one piece.
                half = model.new_int_var(0, len(workers), "")
                model.add(ranks[block] == 2 * half).only_enforce_if(var)
        for b in before:
            model.add(ranks[block] >= ranks[b])

"""The latency of one request under the rules of real plans, as an integer programme that bounds it from below.

Blocks are scheduled one by one: an interval for each block and target, a no-overlap or cumulative resource for each
device, an interval on its link for each value and device that reads it (the flexible job shop with transport;
Laborie et al., "IBM ILOG CP Optimizer for scheduling", Constraints 23, 2018, for the modelling). Segments, which start
only when all that they read is there and pay a launch, can only be later, so the optimum here is a bound for
`evaluate`; the placement that reaches it is a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from edgert.partitioner.indexed import Indexed
from edgert.partitioner.integer import TICKS, Answer, Programme, renamed

__all__ = ["solve_schedule"]


def solve_schedule(indexed: Indexed, start: Sequence[int], cost: float, left_s: Callable[[], float]) -> Answer:
    """A placement whose blocks, scheduled one by one, end earliest; from the valid assignment `start` of that cost."""
    if cost <= 0.0:
        return Answer(list(start), 0.0, False)
    programme = Programme(indexed, cost / TICKS)
    model = programme.model
    began = renamed(indexed, start)
    programme.order_twins(began)
    programme.add_limits(programme.used_targets(began))
    top = 2 * TICKS
    end = model.new_int_var(0, top, "")
    starts = [model.new_int_var(0, top, "") for _ in indexed.names]
    ends = [model.new_int_var(0, top, "") for _ in indexed.names]
    busy: dict[int, list[tuple[Any, int]]] = {}
    for block, item in enumerate(indexed.item_of):
        for t, var in programme.chosen[item].items():
            ticks = programme.ticks(indexed.costs[block][t])
            interval = model.new_optional_interval_var(starts[block], ticks, ends[block], var, "")
            if not indexed.host[t]:
                busy.setdefault(indexed.device_of[t], []).append((interval, indexed.lanes[t]))
        model.add(end >= ends[block])
    for d, found in busy.items():
        lanes = indexed.device_lanes[d]
        if all(2 * need > lanes for _, need in found):
            model.add_no_overlap([interval for interval, _ in found])
        else:
            model.add_cumulative([interval for interval, _ in found], [need for _, need in found], lanes)
    _add_transfers(programme, starts, ends, top)
    programme.hint(began)
    return programme.solve(end, left_s)


def _add_transfers(programme: Programme, starts: Sequence[Any], ends: Sequence[Any], top: int) -> None:
    """Each value goes once over the link to each other device that reads it, one value at a time."""
    indexed, model = programme.indexed, programme.model
    links: dict[tuple[int, int], list[Any]] = {}
    for wire in indexed.wires:
        home = indexed.item_of[wire.source]
        moves: dict[int, tuple[Any, Any]] = {}  # device -> (when it has the value, whether it is moved there)
        for sink in wire.sinks:
            model.add(starts[sink] >= ends[wire.source])
            item = indexed.item_of[sink]
            if item == home:
                continue
            for b in {indexed.device_of[t] for t in programme.chosen[item]}:
                there = programme.on_device(item, b)
                if b not in moves:
                    moves[b] = _move(programme, wire.source, wire.times, b, ends=ends, links=links, top=top)
                arrival = moves[b][0]
                if not isinstance(there, int):
                    flag = model.new_bool_var("")
                    model.add(flag == there)
                    model.add(starts[sink] >= arrival).only_enforce_if(flag)
                    _demand(programme, home, flag, moves[b][1])
    for found in links.values():
        model.add_no_overlap(found)


def _move(
    programme: Programme,
    source: int,
    times: Sequence[Sequence[float]],
    b: int,
    *,
    ends: Sequence[Any],
    links: dict[tuple[int, int], list[Any]],
    top: int,
) -> tuple[Any, dict[int, Any]]:
    """Variables of one value's way to device b: arrival, and for each device that it may come from, whether it does."""
    indexed, model = programme.indexed, programme.model
    arrival = model.new_int_var(0, top, "")
    model.add(arrival >= ends[source])
    ways: dict[int, Any] = {}
    for a in {indexed.device_of[t] for t in programme.chosen[indexed.item_of[source]]} - {b}:
        time = times[a][b]
        if time == 0.0:
            continue
        moved = model.new_bool_var("")
        ways[a] = moved
        if math.isinf(time):
            model.add(moved == 0)
            continue
        begin, finish = model.new_int_var(0, top, ""), model.new_int_var(0, top, "")
        interval = model.new_optional_interval_var(begin, programme.ticks(time), finish, moved, "")
        model.add(begin >= ends[source]).only_enforce_if(moved)
        model.add(arrival >= finish).only_enforce_if(moved)
        links.setdefault((a, b), []).append(interval)
    return arrival, ways


def _demand(programme: Programme, home: int, there: Any, ways: dict[int, Any]) -> None:
    """A reader there and the source on a mean that the value is moved from a."""
    for a, moved in ways.items():
        programme.model.add(moved >= programme.on_device(home, a) + there - 1)

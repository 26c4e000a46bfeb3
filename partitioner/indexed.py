"""A `Problem` with numbers for names, as solvers want it: blocks in topological order, groups merged into items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgert.errors import OptionError
from edgert.partitioner.problem import Problem

__all__ = ["Indexed", "Wire", "index"]


@dataclass(frozen=True, slots=True)
class Wire:
    """A flow between indices."""

    source: int
    """Block."""
    sinks: tuple[int, ...]
    """Blocks, rising, each after the source."""
    times: tuple[tuple[float, ...], ...]
    """[device of the source][device of a sink]: time to move it; infinite where there is no link, 0 on the diagonal."""


@dataclass(frozen=True)
class Indexed:
    """What the solvers read; made by `index`."""

    problem: Problem
    names: tuple[str, ...]
    """Block ids in topological order: every flow leads from a lower to a higher index."""
    successors: tuple[tuple[int, ...], ...]
    predecessors: tuple[tuple[int, ...], ...]
    costs: tuple[tuple[float, ...], ...]
    """[block][target]; infinite where the target does not take the block."""
    memory: tuple[float, ...]
    """[block]."""
    items: tuple[tuple[int, ...], ...]
    """Blocks of each item, rising: those of one group, or one alone. Items are ordered by their first block."""
    item_of: tuple[int, ...]
    """[block]."""
    item_costs: tuple[tuple[float, ...], ...]
    """[item][target]: sum over its blocks."""
    item_memory: tuple[float, ...]
    device_of: tuple[int, ...]
    """[target]."""
    host: tuple[bool, ...]
    """[target]: on a device whose blocks overlap without limit."""
    lanes: tuple[int, ...]
    """[target]: lanes that a segment occupies (1 on a host)."""
    device_lanes: tuple[int, ...]
    """[device]: 1 for a host."""
    capacity: tuple[float, ...]
    """[device]: memory in bytes, with a rounding allowance of 1e-9."""
    launch: tuple[float, ...]
    """[target]."""
    watts: tuple[float, ...]
    """[target]."""
    wires: tuple[Wire, ...]
    wires_from: tuple[tuple[int, ...], ...]
    """[block]: wires that it makes."""
    wires_into: tuple[tuple[int, ...], ...]
    """[block]: wires that it reads."""
    twins: tuple[int, ...]
    """[target]: the first target that it could change places with in any placement; itself when there is none."""

    def spread(self, assignment: Sequence[int]) -> list[int]:
        """Target of each block, from that of each item."""
        return [assignment[item] for item in self.item_of]

    def named(self, assignment: Sequence[int]) -> dict[str, str]:
        """The placement of `assignment` (target of each item), by names, in the problem's order of blocks."""
        place = dict(zip(self.names, self.spread(assignment), strict=True))
        return {block.id: self.problem.targets[place[block.id]].id for block in self.problem.blocks}

    def allowed(self, item: int) -> tuple[int, ...]:
        """Targets that take the item."""
        return tuple(target for target, cost in enumerate(self.item_costs[item]) if math.isfinite(cost))


def index(problem: Problem) -> Indexed:
    """The problem in numbers.

    Raises:
        OptionError: the flows form a cycle; names a block on it.
    """
    names = _topological(problem)
    position = {name: i for i, name in enumerate(names)}
    blocks = sorted(problem.blocks, key=lambda block: position[block.id])
    devices = {device.id: i for i, device in enumerate(problem.devices)}
    device_of = tuple(devices[target.device] for target in problem.targets)
    host = tuple(problem.devices[d].lanes is None for d in device_of)
    device_lanes = tuple(device.lanes or 1 for device in problem.devices)
    costs = tuple(tuple(block.cost_s.get(target.id, math.inf) for target in problem.targets) for block in blocks)
    items = _items([block.group for block in blocks])
    item_of = [0] * len(blocks)
    for number, members in enumerate(items):
        for member in members:
            item_of[member] = number
    wires = _wires(problem, position, devices)
    successors: list[set[int]] = [set() for _ in blocks]
    predecessors: list[set[int]] = [set() for _ in blocks]
    wires_from: list[list[int]] = [[] for _ in blocks]
    wires_into: list[list[int]] = [[] for _ in blocks]
    for number, wire in enumerate(wires):
        wires_from[wire.source].append(number)
        for sink in wire.sinks:
            successors[wire.source].add(sink)
            predecessors[sink].add(wire.source)
            wires_into[sink].append(number)
    return Indexed(
        problem=problem,
        names=tuple(names),
        successors=tuple(tuple(sorted(found)) for found in successors),
        predecessors=tuple(tuple(sorted(found)) for found in predecessors),
        costs=costs,
        memory=tuple(block.memory_bytes for block in blocks),
        items=items,
        item_of=tuple(item_of),
        item_costs=tuple(tuple(map(math.fsum, zip(*(costs[m] for m in members), strict=True))) for members in items),
        item_memory=tuple(math.fsum(blocks[m].memory_bytes for m in members) for members in items),
        device_of=device_of,
        host=host,
        lanes=tuple(
            1 if host[t] else target.lanes or device_lanes[device_of[t]] for t, target in enumerate(problem.targets)
        ),
        device_lanes=device_lanes,
        capacity=tuple(device.memory_bytes * (1 + 1e-9) for device in problem.devices),
        launch=tuple(target.launch_s for target in problem.targets),
        watts=tuple(target.watts for target in problem.targets),
        wires=wires,
        wires_from=tuple(map(tuple, wires_from)),
        wires_into=tuple(map(tuple, wires_into)),
        twins=_twins(problem, costs, device_of, wires),
    )


def _topological(problem: Problem) -> list[str]:
    """Block ids in topological order, close to the given order (Kahn, Communications of the ACM 5, 1962)."""
    waits = {block.id: 0 for block in problem.blocks}
    after: dict[str, list[str]] = {block.id: [] for block in problem.blocks}
    for flow in problem.flows:
        for sink in set(flow.sinks):
            if sink == flow.source:
                raise OptionError(f"block {sink!r} reads what it makes itself.", "Leave that flow out.")
            waits[sink] += 1
            after[flow.source].append(sink)
    # Depth first: a block follows what it reads as closely as can be, which keeps neighbours together in the order.
    ready = [block.id for block in reversed(problem.blocks) if not waits[block.id]]
    order: list[str] = []
    while ready:
        name = ready.pop()
        order.append(name)
        for sink in reversed(after[name]):
            waits[sink] -= 1
            if not waits[sink]:
                ready.append(sink)
    if len(order) < len(waits):
        stuck = next(name for name, count in waits.items() if count)
        raise OptionError(f"the flows form a cycle at or before block {stuck!r}.", "A graph to place has none.")
    return order


def _items(groups: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    found: dict[str | int, list[int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(group or number, []).append(number)
    return tuple(map(tuple, found.values()))


def _wires(problem: Problem, position: Mapping[str, int], devices: Mapping[str, int]) -> tuple[Wire, ...]:
    links = {(devices[k.source], devices[k.sink]): k for k in problem.links if {k.source, k.sink} <= devices.keys()}
    count = len(devices)
    tables: dict[tuple[float, float | None], tuple[tuple[float, ...], ...]] = {}

    def time_s(size_bytes: float, cost_s: float | None, a: int, b: int) -> float:
        if a == b or problem.transfers == "free":
            return 0.0
        if cost_s is not None:
            return cost_s
        link = links.get((a, b))
        return math.inf if link is None else link.latency_s + size_bytes / link.bandwidth_bytes_per_s

    wires = []
    for flow in problem.flows:
        key = (flow.size_bytes, flow.cost_s)
        if key not in tables:
            tables[key] = tuple(tuple(time_s(*key, a, b) for b in range(count)) for a in range(count))
        sinks = tuple(sorted({position[sink] for sink in flow.sinks}))
        wires.append(Wire(position[flow.source], sinks, tables[key]))
    return tuple(wires)


def _twins(
    problem: Problem, costs: Sequence[Sequence[float]], device_of: Sequence[int], wires: Sequence[Wire]
) -> tuple[int, ...]:
    """Targets alone on devices of their own that nothing tells apart; solvers use them in one order only."""
    alone = [device_of.count(d) == 1 for d in device_of]
    columns = list(zip(*costs, strict=True))
    tables = {wire.times for wire in wires}
    twins = list(range(len(device_of)))
    for late, target in enumerate(problem.targets):
        for early in range(late):
            other = problem.targets[early]
            a, b = problem.devices[device_of[early]], problem.devices[device_of[late]]
            same = (
                (target.lanes, target.launch_s, target.watts) == (other.lanes, other.launch_s, other.watts)
                and (a.memory_bytes, a.lanes) == (b.memory_bytes, b.lanes)
                and columns[early] == columns[late]
                and (alone[early] and alone[late] and twins[early] == early)
            )
            if same and all(_swappable(table, device_of[early], device_of[late]) for table in tables):
                twins[late] = early
                break
    return tuple(twins)


def _swappable(table: Sequence[Sequence[float]], a: int, b: int) -> bool:
    """Whether exchanging devices a and b leaves a table of transfer times as it is."""
    other = {a: b, b: a}
    devices = range(len(table))
    return all(table[i][j] == table[other.get(i, i)][other.get(j, j)] for i in devices for j in devices)

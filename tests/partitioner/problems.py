"""Random placement problems, and their optimum by trying everything."""

from __future__ import annotations

import itertools
import math
from typing import Any

from hypothesis import strategies as st

from edgert.machine import Link
from edgert.partitioner.evaluate import cost_of
from edgert.partitioner.indexed import Indexed, index
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Flow, Problem, TargetSpec

COSTS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0])
WIDE = st.sampled_from([0.0, 1e-6, 0.7, 1.3, 5.0, 1e15])
"""Some so large that nobody takes them, as files have it that mean 'never'."""


@st.composite
def edges(draw: st.DrawFn, count: int) -> list[tuple[int, int]]:
    """A chain, or a graph with branches; from lower to higher numbers."""
    if draw(st.booleans()):
        return [(i, i + 1) for i in range(count - 1)]
    pairs = list(itertools.combinations(range(count), 2))
    return sorted(draw(st.lists(st.sampled_from(pairs), unique=True, max_size=2 * count))) if pairs else []


@st.composite
def file_problems(draw: st.DrawFn, most_nodes: int = 9, costs: st.SearchStrategy[float] = COSTS) -> dict[str, Any]:
    """Problems in the format of the placement files, with 1 to 3 accelerators; sizes whole, huge or parts of 1."""
    count = draw(st.integers(1, most_nodes))
    accelerators = draw(st.integers(1, 2 if count > 6 else 3))
    unit = draw(st.sampled_from([1, 0.125, 2**40]))
    nodes = []
    for node in range(count):
        row = {
            "id": node,
            "cpuLatency": draw(costs),
            "fpgaLatency": draw(costs),
            "size": unit * draw(st.integers(0, 4)),
            "supportedOnFpga": draw(st.sampled_from([1, 1, 1, 0])),
        }
        if draw(st.booleans()):
            row["colorClass"] = draw(st.integers(0, count))
        nodes.append(row)
    moved = [draw(costs) for _ in range(count)]
    return {
        "nodes": nodes,
        "edges": [{"sourceId": a, "destId": b, "cost": moved[a]} for a, b in draw(edges(count))],
        "maxFPGAs": accelerators,
        "maxCPUs": 1,
        "maxSizePerFPGA": unit * draw(st.integers(2, 4 * count)),
    }


@st.composite
def machine_problems(draw: st.DrawFn, most_blocks: int = 7) -> Problem:
    """Problems under the rules of real plans: links, lanes, launches, limits."""
    count = draw(st.integers(1, most_blocks))
    names = [f"b{i}" for i in range(count)]
    devices = draw(st.integers(2, 2 if count > 6 else 3))
    targets = tuple(
        TargetSpec(f"t{d}", f"d{d}", launch_s=draw(st.sampled_from([0.0, 0.0, 0.5])), watts=float(d + 1))
        for d in range(devices)
    )
    if draw(st.booleans()):
        targets += (TargetSpec("t0/1", "d0", lanes=1, watts=0.5),)
    blocks = []
    for name in names:
        takes = draw(st.lists(st.sampled_from(targets), min_size=1, unique=True))
        group = draw(st.sampled_from(["", "", "", "shared"]))
        blocks.append(
            BlockSpec(name, {t.id: draw(COSTS) for t in takes}, memory_bytes=draw(st.integers(0, 3)), group=group)
        )
    flows: dict[int, list[str]] = {}
    for a, b in draw(edges(count)):
        flows.setdefault(a, []).append(names[b])
    objective = draw(st.sampled_from(["latency", "throughput"]))
    pairs = itertools.permutations(range(devices), 2)
    return Problem(
        blocks=tuple(blocks),
        devices=tuple(
            DeviceSpec(f"d{d}", draw(st.sampled_from([math.inf, 6.0])), lanes=2 if d == 0 else 1)
            for d in range(devices)
        ),
        targets=targets,
        flows=tuple(Flow(names[a], tuple(sinks), size_bytes=draw(COSTS)) for a, sinks in flows.items()),
        links=tuple(Link(f"d{a}", f"d{b}", 0.25, draw(st.sampled_from([1.0, 4.0]))) for a, b in pairs),
        objective=objective,
        transfers=draw(st.sampled_from(["link", "link", "free"])),
        pieces=draw(st.sampled_from(["many", "many", "one"])),
        most_segments=draw(st.sampled_from([None, None, 2])),
        most_energy_j=draw(st.sampled_from([None, None, 20.0])),
    )


def optimum(problem: Problem) -> float:
    """The least cost over all placements; infinite when none keeps the limits.

    Not costed in full are placements that differ from another by the names of like accelerators alone, and those of
    which a part holds too much already, or keeps a device busy for as long as the best takes.
    """
    search = _Everything(index(problem))
    search.place(0)
    return search.best


def optimum_of_all(problem: Problem) -> float:
    """As `optimum`, each placement costed in full."""
    indexed = index(problem)
    options = [indexed.allowed(item) for item in range(len(indexed.items))]
    return min((cost_of(indexed, indexed.spread(c)) for c in itertools.product(*options)), default=math.inf)


class _Everything:
    """Goes through all placements, item by item."""

    def __init__(self, indexed: Indexed) -> None:
        self.indexed = indexed
        self.best = math.inf
        self.chosen: list[int] = []
        self.held = [0.0] * len(indexed.capacity)
        self.busy = [0.0] * len(indexed.capacity)
        alike = [t.id.startswith("acc:") for t in indexed.problem.targets]
        self.before = [t - 1 if t and alike[t] and alike[t - 1] else -1 for t in range(len(alike))]
        """[target] -> the accelerator that does not differ from it and is used first; -1 for none."""
        # Under throughput all work of a device counts, under latency that of a host overlaps.
        throughput = indexed.problem.objective == "throughput"
        self.counts = [throughput or not host for host in indexed.host]

    def place(self, item: int) -> None:
        """Each target for the items from this one on."""
        indexed = self.indexed
        if item == len(indexed.items):
            self.best = min(self.best, cost_of(indexed, indexed.spread(self.chosen)))
            return
        for t in indexed.allowed(item):
            if self.before[t] >= 0 and self.before[t] not in self.chosen:
                continue
            d = indexed.device_of[t]
            held, busy = self.held[d], self.busy[d]
            self.held[d] += indexed.item_memory[item]
            if self.counts[t]:
                self.busy[d] += indexed.item_costs[item][t] * indexed.lanes[t] / indexed.device_lanes[d]
            if self.held[d] <= indexed.capacity[d] and self.busy[d] * (1 - 1e-9) <= self.best:
                self.chosen.append(t)
                self.place(item + 1)
                self.chosen.pop()
            self.held[d], self.busy[d] = held, busy


def file_cost(data: dict[str, Any], place: dict[int, str], objective: str, contiguous: bool) -> float:
    """Cost of a placement of a file's nodes, written from the rules in words; infinite when it breaks one."""
    nodes = {node["id"]: node for node in data["nodes"]}
    edges = [(edge["sourceId"], edge["destId"]) for edge in data["edges"]]
    moved = {edge["sourceId"]: edge["cost"] for edge in data["edges"]}
    colours: dict[int, str] = {}
    for name, node in nodes.items():
        if place[name] != "cpu" and not node["supportedOnFpga"]:
            return math.inf
        if "colorClass" in node and colours.setdefault(node["colorClass"], place[name]) != place[name]:
            return math.inf
    groups = {device: {v for v in nodes if place[v] == device} for device in set(place.values())}
    loads = {}
    for device, group in groups.items():
        if device == "cpu":
            loads[device] = sum(nodes[v]["cpuLatency"] for v in group)
            continue
        if sum(nodes[v]["size"] for v in group) > data["maxSizePerFPGA"]:
            return math.inf
        crossing = {u for u, v in edges if v in group and u not in group}
        own = {u for u, v in edges if u in group and v not in group}
        loads[device] = sum(nodes[v]["fpgaLatency"] for v in group) + sum(moved[u] for u in [*crossing, *own])
        if (contiguous or objective == "latency") and _leaves_and_returns(group, edges):
            return math.inf
    if objective == "throughput":
        return max(loads.values())
    unit = {v: place[v] if place[v] != "cpu" else v for v in nodes}
    done: dict[int | str, float] = dict.fromkeys(unit.values(), 0.0)
    for _ in range(len(done) + 1):
        before = dict(done)
        for u in done:
            start = max((done[unit[a]] for a, b in edges if unit[b] == u and unit[a] != u), default=0.0)
            done[u] = start + (loads[u] if isinstance(u, str) else nodes[u]["cpuLatency"])
        if done == before:
            return max(done.values())
    return math.inf  # pieces that wait for each other


def _leaves_and_returns(group: set[int], edges: list[tuple[int, int]]) -> bool:
    beyond: set[int] = set()
    for _ in range(len(edges) + 1):
        beyond |= {v for u, v in edges if v not in group and (u in group or u in beyond)}
    return any(u in beyond and v in group for u, v in edges)

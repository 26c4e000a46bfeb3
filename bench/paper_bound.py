"""How fast a model could run on a machine on paper: a search that may read what the devices declare.

    python -m bench.paper_bound [--machine NAME ...] [--model NAME ...] [--seconds 10]

The planner measures, and has a budget. This search computes what any placement takes, without jitter, from the declared
figures themselves (`edgert.devices.simulation`, `contention`), and so tries thousands of them end to end: first the
model's order cut into runs, by dynamic programme over the true times of whole runs with their fusion, launches and
links; then local search over blocks, runs and borders, which finds branches that overlap too. What it finds is no
proved bound, but it knows from the start all that the planner has to find out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from edgert.devices.contention import Move, Task, end_s
from edgert.devices.simulation import Load, Paper, load_of, transfer_s
from edgert.execution.virtual import HOST
from edgert.formats import ModelFile, open_model
from edgert.graph import Graph
from edgert.machine import Device, Machine
from edgert.partitioner.blocks import Block, blocks_of
from edgert.partitioner.cuts import flows_of, weights_of
from edgert.partitioner.evaluate import pieces_of
from edgert.partitioner.indexed import index
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Problem, TargetSpec
from edgert.profile import Precision

_MOST_BORDERS = 18
"""Of a model with more blocks, so many borders are tried by the dynamic programme; local search moves them."""

_MOST_NAMED = 12


@dataclass(frozen=True, slots=True)
class Place:
    """A device at a precision."""

    device: Device
    precision: Precision

    def __str__(self) -> str:
        return f"{self.device.id}/{self.precision}"


@dataclass(frozen=True, slots=True)
class Found:
    """A placement and what it takes."""

    seconds: float
    place: tuple[int, ...] = field(repr=False)
    """[block] -> index into `Rig.places`."""


class Rig:
    """One model on one machine on paper, with every declared figure at hand."""

    def __init__(self, file: ModelFile, machine: Machine) -> None:
        self.graph: Graph = file.graph
        self.blocks: tuple[Block, ...] = blocks_of(file.graph)
        self.places = tuple(_places(machine, file.precision))
        self._taken = [self._takes(place) for place in self.places]
        self._weights = [weights_of(self.graph, block) for block in self.blocks]
        flows = flows_of(self.graph, self.blocks)
        cost = [{str(place): 1.0 for p, place in enumerate(self.places) if b in self._taken[p]} for b in self._numbers]
        devices = dict.fromkeys(place.device.id for place in self.places)
        self.indexed = index(Problem(
            tuple(BlockSpec(str(b), cost[b], group=self.blocks[b].group) for b in self._numbers),
            tuple(map(DeviceSpec, devices)),
            tuple(TargetSpec(str(place), place.device.id) for place in self.places),
            tuple(type(flow)(self._number(flow.source), tuple(map(self._number, flow.sinks)), 0.0) for flow in flows),
        ))  # fmt: skip
        self.order = [int(name) for name in self.indexed.names]
        """Numbers of blocks, in the order of the index."""
        self.load = cache(self._load)
        self._limit = min(Paper.of(place.device, place.precision).dram_bytes_per_s for place in self.places)

    @property
    def _numbers(self) -> range:
        return range(len(self.blocks))

    def _number(self, name: str) -> str:
        return str(next(number for number, block in enumerate(self.blocks) if block.id == name))

    def _takes(self, place: Place) -> frozenset[int]:
        declared = place.device.attributes.get("ops")
        known = None if declared is None else frozenset(declared.split())
        return frozenset(
            number
            for number, block in enumerate(self.blocks)
            if known is None or all(self.graph.nodes[node].op in known for node in block.nodes)
        )

    def takes_all(self, place: int, blocks: Sequence[int]) -> bool:
        """Whether the place has every op of those blocks."""
        return self._taken[place].issuperset(blocks)

    def _load(self, nodes: frozenset[int], place: int) -> Load:
        paper = Paper.of(self.places[place].device, self.places[place].precision)
        load = load_of(part_of(self.graph, nodes), paper)
        return Load(load.seconds + paper.launch_s, load.memory_s, load.bytes)

    def nodes(self, blocks: Sequence[int]) -> frozenset[int]:
        """Of those blocks."""
        return frozenset(node for number in blocks for node in self.blocks[number].nodes)

    def way_s(self, value: str, source: int, sink: int) -> float:
        """Of a value from one place to another, through the host's memory."""
        ends = self.places[source].device, self.places[sink].device
        if ends[0].id == ends[1].id:
            return 0.0
        size = self.graph.values[value].size_bytes() or 0
        return sum(transfer_s(device, size) for device in ends if device.id != HOST)

    def fits(self, place: Sequence[int]) -> bool:
        """Whether every block is taken, groups are together and devices hold what is on them."""
        held: dict[str, float] = {}
        homes: dict[str, int] = {}
        for number, where in enumerate(place):
            group = self.blocks[number].group
            if number not in self._taken[where] or homes.setdefault(group or str(number), where) != where:
                return False
            device = self.places[where].device
            held[device.id] = held.get(device.id, 0.0) + self._weights[number]
        return all(held.get(p.device.id, 0.0) <= (p.device.memory_bytes or math.inf) for p in self.places)

    def seconds(self, place: Sequence[int]) -> float:
        """One request end to end, [block] -> place; infinite where it does not fit."""
        if len(set(place)) == 1 and self.takes_all(place[0], self._numbers):
            return self.load(self.nodes(self._numbers), place[0]).seconds
        if not self.fits(place):
            return math.inf
        pieces = pieces_of(self.indexed, [place[number] for number in self.order])
        assert pieces is not None, "pieces are 'many'"
        return self.run([(self.nodes([self.order[b] for b in piece]), place[self.order[piece[0]]]) for piece in pieces])

    def single(self) -> tuple[float, str]:
        """The whole model where that is fastest; infinite where no place takes it."""
        count = len(self.blocks)
        known = [(self.seconds([p] * count), str(place)) for p, place in enumerate(self.places)]
        return min(known, default=(math.inf, ""))

    def run(self, pieces: Sequence[tuple[frozenset[int], int]]) -> float:
        """Segments (nodes, place), none of which reads what it helps to make, as the devices would overlap."""
        loads = [self.load(*piece) for piece in pieces]
        home = {node: number for number, (nodes, _) in enumerate(pieces) for node in nodes}
        moves: list[tuple[int, list[int], float]] = []
        for value, maker in self.graph.producers.items():
            sinks = dict.fromkeys(home[reader] for reader in self.graph.consumers.get(value, ()))
            sinks.pop(home[maker], None)
            by_device: dict[str, list[int]] = {}
            for sink in sinks:
                by_device.setdefault(self.places[pieces[sink][1]].device.id, []).append(sink)
            for there in by_device.values():
                moves.append((home[maker], there, self.way_s(value, pieces[home[maker]][1], pieces[there[0]][1])))
        order = _by_rank([load.seconds for load in loads], moves)
        position = {piece: number for number, piece in enumerate(order)}
        return end_s(
            [Task(self.places[pieces[p][1]].device.id, loads[p]) for p in order],
            [Move(position[source], tuple(position[s] for s in sinks), way) for source, sinks, way in moves],
            self._limit,
        )


def _by_rank(seconds: Sequence[float], moves: Sequence[tuple[int, list[int], float]]) -> list[int]:
    """Those with the longest way to the end first."""
    after: list[list[tuple[int, float]]] = [[] for _ in seconds]
    for source, sinks, way in moves:
        after[source] += [(sink, way) for sink in sinks]

    @cache
    def rank(piece: int) -> float:
        return seconds[piece] + max((way + rank(sink) for sink, way in after[piece]), default=0.0)

    return sorted(range(len(seconds)), key=lambda piece: -rank(piece))


def _places(machine: Machine, own: Precision) -> Iterator[Place]:
    for device in machine.devices:
        declared = device.attributes.get("precisions", own).split()
        wanted: tuple[Precision, ...] = (own, "f16") if own == "f32" else (own,)
        yield from (Place(device, each) for each in wanted if each in declared)


def part_of(graph: Graph, nodes: frozenset[int]) -> Graph:
    """Those nodes as a graph of their own."""
    inputs, outputs = graph.boundary(nodes)
    chosen = tuple(graph.nodes[index] for index in sorted(nodes))
    read = {name for node in chosen for name in node.reads}
    return Graph(
        graph.format, graph.name, chosen, tuple(graph.values[name] for name in inputs),
        tuple(graph.values[name] for name in outputs), graph.values,
        {name: graph.constants[name] for name in read if name in graph.constants},
    )  # fmt: skip


def best(rig: Rig, seconds: float, starts: Sequence[Sequence[int]] = ()) -> Found:
    """The best placement found in about that time, the whole model on one place among them."""
    count = len(rig.blocks)
    candidates = [[place] * count for place in range(len(rig.places)) if rig.takes_all(place, range(count))]
    candidates += [list(start) for start in starts] + _runs(rig)
    found = [Found(rig.seconds(place), tuple(place)) for place in candidates]
    found = sorted((each for each in found if math.isfinite(each.seconds)), key=lambda each: each.seconds)
    end = time.process_time() + seconds
    winner = found[0]
    chance = random.Random(0)
    for start in (*found[:3], winner):  # each has a third of the time
        end_start = time.process_time() + seconds / 3
        winner = min(winner, _climbed(rig, start, min(end, end_start), chance), key=lambda each: each.seconds)
    return winner


def _runs(rig: Rig) -> list[list[int]]:
    """The cheapest placements of the order cut into 1, 2, ... 8 runs, one after another."""
    count = len(rig.blocks)
    steps = min(count, _MOST_BORDERS)
    ends = {1, 2, count - 2, count - 1}  # where images are quantised and classes picked
    borders = sorted({round(i * count / steps) for i in range(steps + 1)} | {at for at in ends if 0 < at < count})
    crossing = _crossing(rig, borders)
    kinds = range(len(rig.places))
    # state[border][place] = (seconds, runs before, back) for each number of runs
    best_at: list[dict[tuple[int, int], tuple[float, int, int]]] = [{} for _ in borders]
    best_at[0] = {(0, -1): (0.0, 0, -1)}
    for high in range(1, len(borders)):
        for low in range(high):
            blocks = range(borders[low], borders[high])
            for place in kinds:
                if not rig.takes_all(place, blocks):
                    continue
                run_s = rig.load(rig.nodes(blocks), place).seconds
                for (runs, before), (so_far_s, _, _) in best_at[low].items():
                    if runs >= 8 or before == place:
                        continue
                    way = sum(rig.way_s(value, before, place) for value in crossing[low]) if before >= 0 else 0.0
                    key, total = (runs + 1, place), so_far_s + way + run_s
                    if total < best_at[high].get(key, (math.inf, 0, 0))[0]:
                        best_at[high][key] = (total, low, before)
    placements = []
    for key in best_at[-1]:
        place_of, at, (runs, place) = [0] * count, len(borders) - 1, key
        while at:
            _, low, before = best_at[at][runs, place]
            place_of[borders[low] : borders[at]] = [place] * (borders[at] - borders[low])
            at, runs, place = low, runs - 1, before
        placements.append(place_of)
    return placements


def _crossing(rig: Rig, borders: Sequence[int]) -> list[list[str]]:
    """[border] -> values made before it and read after it."""
    home = {node: number for number, block in enumerate(rig.blocks) for node in block.nodes}
    last = {value: max(home[r] for r in readers) for value, readers in rig.graph.consumers.items()}
    return [
        [value for value, maker in rig.graph.producers.items() if home[maker] < border <= last.get(value, -1)]
        for border in borders
    ]


def _climbed(rig: Rig, start: Found, end: float, chance: random.Random) -> Found:
    """A block, a run or a border goes elsewhere, for good where that is no slower, or little and early."""
    current = winner = start
    kinds, begun = len(rig.places), time.process_time()
    while (now := time.process_time()) < end:
        heat = 0.02 * max(0.0, 1 - (now - begun) / max(1e-9, end - begun)) * winner.seconds
        place = _moved(list(current.place), kinds, chance)
        for number, where in enumerate(place):  # what the place does not take stays where it was
            if not rig.takes_all(where, [number]):
                place[number] = current.place[number]
        moved = Found(rig.seconds(place), tuple(place))
        worse = moved.seconds - current.seconds
        if worse <= 0 or chance.random() < math.exp(-worse / max(heat, 1e-12)):
            current = moved
        winner = min(winner, current, key=lambda each: each.seconds)
    return winner


def _moved(place: list[int], kinds: int, chance: random.Random) -> list[int]:
    """One change: a border, a block or a run of them."""
    borders = [at for at in range(1, len(place)) if place[at] != place[at - 1]]
    if borders and chance.random() < 0.4:
        at, far = chance.choice(borders), 1 + int(chance.expovariate(0.5))
        low, high, to = (at, at + far, place[at - 1]) if chance.random() < 0.5 else (max(0, at - far), at, place[at])
    else:
        low, to = chance.randrange(len(place)), chance.randrange(kinds)
        high = low + (1 if chance.random() < 0.4 else chance.randint(1, max(1, len(place) // 3)))
    place[low:high] = [to] * len(place[low:high])
    return place


def text_of(rig: Rig, found: Found) -> str:
    """'npu:0/i8 x30, cpu:0/i8 x2', in the order of blocks."""
    runs = [(str(rig.places[place]), sum(1 for _ in run)) for place, run in itertools.groupby(found.place)]
    more = " ..." if len(runs) > _MOST_NAMED else ""
    return ", ".join(f"{name} x{count}" for name, count in runs[:_MOST_NAMED]) + more


def main() -> None:
    """Search, show."""
    from bench.paper_models import MODELS, machine, model_file, names

    parser = argparse.ArgumentParser(prog="python -m bench.paper_bound", description="The best that could be had.")
    parser.add_argument("--machine", nargs="+", choices=names(), default=list(names()))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of processor time for each local search")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for machine_name in options.machine:
            for model_name in options.model:
                rig = Rig(open_model(model_file(model_name, Path(folder))), machine(machine_name))
                single_s, name = rig.single()
                found = best(rig, options.seconds)
                sys.stdout.write(
                    f"{machine_name} {model_name}: {name} {1e3 * single_s:.4g} ms; best {1e3 * found.seconds:.4g} ms, "
                    f"{single_s / found.seconds:.3f}x: {text_of(rig, found)}\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()

"""A good placement of any graph within seconds: starts by list scheduling and by cuts of a line, then local search.

List scheduling is HEFT (Topcuoglu, Hariri and Wu, "Performance-effective and low-complexity task scheduling for
heterogeneous computing", IEEE TPDS 13, 2002), made to keep memory limits. The local search is simulated annealing
(Kirkpatrick, Gelatt and Vecchi, Science 220, 1983) with a fixed seed; its moves give a block, a run of blocks or the
border of a segment to another target.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence

from edgert.partitioner.evaluate import cost_of
from edgert.partitioner.indexed import Indexed
from edgert.partitioner.intervals import item_graph, item_orders, place_intervals

__all__ = ["anneal", "first_fit", "list_schedule", "starts"]

_SEED = 1


def starts(indexed: Indexed, more: Callable[[], bool]) -> Iterator[list[int]]:
    """Assignments to start from, some of which may break limits; the first are quick to make."""
    for target in range(len(indexed.device_of)):
        if indexed.twins[target] == target and all(math.isfinite(costs[target]) for costs in indexed.item_costs):
            yield [target] * len(indexed.items)
    yield first_fit(indexed)
    if indexed.problem.pieces == "many":
        yield list_schedule(indexed)
    for order in item_orders(indexed):
        if not more():
            return
        yield from place_intervals(indexed, order)


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


def anneal(
    indexed: Indexed, start: Sequence[int], cost: float, more: Callable[[], bool], rounds: int = 4_000
) -> tuple[list[int], float]:
    """A placement no worse than the valid `start`, and its cost.

    Throughput with any split is annealed on its loads alone, move by move; otherwise each move is costed in full.
    """
    if indexed.problem.objective == "throughput" and indexed.problem.pieces == "many" and not any(indexed.launch):
        found = _Loads(indexed, start).anneal(more)
        again = cost_of(indexed, indexed.spread(found))
        return (found, again) if again < cost else (list(start), cost)
    return _anneal_slowly(indexed, start, cost, more, rounds)


def _anneal_slowly(
    indexed: Indexed, start: Sequence[int], cost: float, more: Callable[[], bool], rounds: int
) -> tuple[list[int], float]:
    chance = random.Random(_SEED)
    neighbours = _neighbours(indexed)
    order = item_orders(indexed)[0]
    place_in_order = {item: i for i, item in enumerate(order)}
    now, now_cost = list(start), cost
    best, best_cost = list(start), cost
    heat = 0.02 * cost
    for number in range(rounds):
        if number % 8 == 0 and not more():
            break
        moved = _moved(indexed, now, chance, neighbours=neighbours, order=order, place_in_order=place_in_order)
        moved_cost = cost_of(indexed, indexed.spread(moved))
        limit = heat * (1 - number / rounds) ** 2
        if moved_cost <= now_cost or (limit > 0 and chance.random() < math.exp((now_cost - moved_cost) / limit)):
            now, now_cost = moved, moved_cost
            if now_cost < best_cost:
                best, best_cost = list(now), now_cost
    return best, best_cost


def _neighbours(indexed: Indexed) -> list[list[int]]:
    after, before = item_graph(indexed)
    return [sorted(a | b) for a, b in zip(after, before, strict=True)]


def _moved(
    indexed: Indexed,
    now: Sequence[int],
    chance: random.Random,
    *,
    neighbours: Sequence[Sequence[int]],
    order: Sequence[int],
    place_in_order: dict[int, int],
) -> list[int]:
    """`now` after one random move."""
    moved = list(now)
    item = chance.randrange(len(now))
    around = neighbours[item]
    if around and chance.random() < 0.7:
        # The border of a segment moves: what lies between two targets takes the other's.
        target = now[chance.choice(around)]
    else:
        target = chance.randrange(len(indexed.device_of))
    length = chance.choice((1, 1, 1, 2, 3, 5, 8, 13))
    at = place_in_order[item]
    first = at if chance.random() < 0.5 else max(0, at - length + 1)
    for other in order[first : first + length]:
        if now[other] == now[item] and math.isfinite(indexed.item_costs[other][target]):
            moved[other] = target
    if length == 1 and around and chance.random() < 0.2:
        other = chance.choice(around)
        if math.isfinite(indexed.item_costs[other][now[item]]) and math.isfinite(indexed.item_costs[item][now[other]]):
            moved[item], moved[other] = now[other], now[item]
    return moved


class _Loads:
    """Loads of devices and links, kept up to date while items move."""

    def __init__(self, indexed: Indexed, start: Sequence[int]) -> None:
        self.indexed = indexed
        self.place = list(start)
        devices = len(indexed.capacity)
        self.devices = devices
        self.host = [False] * devices
        for t, host in enumerate(indexed.host):
            self.host[indexed.device_of[t]] = host
        self.on_device = indexed.problem.transfers == "device"
        self.readers = [[0] * devices for _ in indexed.wires]
        """[wire][device] -> blocks there that read it."""
        self.loads = [0.0] * (devices * devices)
        """[a * devices + b]: of a link; of a device where a = b."""
        self.held = [0.0] * devices
        self.energy = 0.0
        device_of = [indexed.device_of[t] for t in indexed.spread(start)]
        for number, wire in enumerate(indexed.wires):
            for sink in wire.sinks:
                self.readers[number][device_of[sink]] += 1
            self._charge(number, device_of[wire.source], 1)
        for item, t in enumerate(start):
            self._settle(item, t, 1)

    def _settle(self, item: int, target: int, sign: int) -> None:
        d = self.indexed.device_of[target]
        share = self.indexed.lanes[target] / self.indexed.device_lanes[d]
        cost = self.indexed.item_costs[item][target]
        self.loads[d * self.devices + d] += sign * share * cost
        self.held[d] += sign * self.indexed.item_memory[item]
        self.energy += sign * self.indexed.watts[target] * cost

    def _charge(self, number: int, home: int, sign: int) -> None:
        """Add or take off what one wire costs as things stand."""
        times = self.indexed.wires[number].times[home]
        away = 0.0
        for d, readers in enumerate(self.readers[number]):
            if readers and d != home:
                if not self.on_device:
                    self.loads[home * self.devices + d] += sign * times[d]
                elif not self.host[d]:
                    self.loads[d * self.devices + d] += sign * times[d]
                away = max(away, times[d])
        if self.on_device and not self.host[home]:
            self.loads[home * self.devices + home] += sign * away

    def move(self, item: int, target: int) -> None:
        """Put the item on the target."""
        indexed = self.indexed
        old = self.place[item]
        before, after = indexed.device_of[old], indexed.device_of[target]
        self._settle(item, old, -1)
        self._settle(item, target, 1)
        self.place[item] = target
        if before == after:
            return
        touched: dict[int, int] = {}  # wire -> device of its source before
        for block in indexed.items[item]:
            for number in indexed.wires_from[block]:
                touched[number] = before
            for number in indexed.wires_into[block]:
                source = indexed.item_of[indexed.wires[number].source]
                touched.setdefault(number, before if source == item else indexed.device_of[self.place[source]])
        for number, home in touched.items():
            self._charge(number, home, -1)
        for block in indexed.items[item]:
            for number in indexed.wires_into[block]:
                self.readers[number][before] -= 1
                self.readers[number][after] += 1
        for number in touched:
            source = indexed.item_of[indexed.wires[number].source]
            self._charge(number, indexed.device_of[self.place[source]], 1)

    def valid(self) -> bool:
        """Whether memory and energy keep their limits."""
        most = self.indexed.problem.most_energy_j
        fits = all(held <= limit for held, limit in zip(self.held, self.indexed.capacity, strict=True))
        return fits and (most is None or self.energy <= most)

    def anneal(self, more: Callable[[], bool], rounds: int = 60_000) -> list[int]:
        """The best assignment that was met."""
        chance = random.Random(_SEED)
        neighbours = _neighbours(self.indexed)
        scale = max(self.loads)
        best, best_top = list(self.place), scale
        now = self._energy(scale) if scale > 0 else 0.0
        finite = all(math.isfinite(t) for wire in self.indexed.wires for row in wire.times for t in row)
        for number in range(rounds if finite and scale > 0 else 0):
            if number % 64 == 0 and not more():
                break
            item = chance.randrange(len(self.place))
            old = self.place[item]
            around = neighbours[item]
            near = around and chance.random() < 0.8
            target = self.place[chance.choice(around)] if near else chance.randrange(len(self.indexed.device_of))
            if target == old or math.isinf(self.indexed.item_costs[item][target]):
                continue
            self.move(item, target)
            then = self._energy(scale)
            heat = 0.03 * (1 - number / rounds) ** 2
            keep = then <= now or (heat > 0 and chance.random() < math.exp(min(0.0, (now - then) / heat)))
            if not keep or not self.valid():
                self.move(item, old)
                continue
            now = then
            top = max(self.loads)
            if top < best_top * (1 - 1e-9):
                best, best_top = list(self.place), top
        return best

    def _energy(self, scale: float) -> float:
        """A smooth stand-in for the largest load, in which a second largest one counts too."""
        return float(sum((abs(load) / scale) ** 8 for load in self.loads) ** 0.125)

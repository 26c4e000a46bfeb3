"""What a placement costs under the rules of its problem: the one definition that every solver is held to."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgert.errors import Infeasible, OptionError
from edgert.partitioner.indexed import Indexed, index
from edgert.partitioner.problem import Problem

__all__ = ["Evaluation", "Piece", "cost_of", "evaluate", "fault", "is_convex", "loads_of", "pieces_of"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks that run as one on one target."""

    target: str
    blocks: tuple[str, ...]
    """In topological order."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The cost of one placement, and what it is made of."""

    cost: float
    """By the problem's objective."""
    latency: float
    """End of one request; infinite when the pieces cannot be ordered (which only throughput allows)."""
    loads: Mapping[str, float]
    """Device id, or 'a>b' for a link -> time that one request keeps it busy."""
    energy_j: float
    memory_bytes: Mapping[str, float]
    """Device id -> what its blocks hold."""
    pieces: tuple[Piece, ...]
    """In an order in which they can run; under `pieces='convex'` one a target, in no such order."""


def evaluate(problem: Problem, placement: Mapping[str, str]) -> Evaluation:
    """What `placement` (block id -> target id) costs.

    latency: a piece starts when all that it reads is there and its device has lanes free; what it makes is there when
    all of it is done. Where pieces compete for lanes or a link, the one with the longest way to the end of the
    request goes first (the upward rank of HEFT; Topcuoglu, Hariri and Wu, IEEE TPDS 13, 2002).
    throughput: the largest load of a device (times of its blocks and launches, by the share of its lanes that
    they take, and under `transfers='device'` of every distinct value that it reads from or hands to another) or of
    a link (times of the values that cross it).

    Raises:
        OptionError: the placement misses or invents a block or target.
        Infeasible: it breaks a limit; says which, and by how much.
    """
    indexed = index(problem)
    numbers = {target.id: number for number, target in enumerate(problem.targets)}
    if placement.keys() != set(indexed.names):
        odd = sorted(placement.keys() ^ set(indexed.names))[0]
        raise OptionError(f"the placement misses or invents block {odd!r}.", "Place every block, and no other.")
    unknown = [name for name in placement.values() if name not in numbers]
    if unknown:
        raise OptionError(f"the placement names target {unknown[0]!r}.", "Use the problem's targets.")
    place = [numbers[placement[name]] for name in indexed.names]
    broken = fault(indexed, place)
    if broken is not None:
        raise broken
    pieces = pieces_of(indexed, place) or by_target(indexed, place)
    loads = loads_of(indexed, place, pieces)
    latency, order = _schedule(indexed, place, pieces)
    devices = [device.id for device in problem.devices]
    held = [math.fsum(_held(indexed, place, d)) for d in range(len(devices))]
    named = {devices[a] if a == b else f"{devices[a]}>{devices[b]}": load for (a, b), load in loads.items()}
    return Evaluation(
        cost=latency if problem.objective == "latency" else max(loads.values()),
        latency=latency,
        loads=named,
        energy_j=energy_of(indexed, place, pieces),
        memory_bytes=dict(zip(devices, held, strict=True)),
        pieces=tuple(
            Piece(problem.targets[place[pieces[p][0]]].id, tuple(indexed.names[b] for b in pieces[p])) for p in order
        ),
    )


def cost_of(indexed: Indexed, place: Sequence[int]) -> float:  # noqa: PLR0911 - one return a limit
    """Cost of a placement (target of each block); infinite when it breaks a limit. For solvers: no message is made."""
    for members in indexed.items:
        if any(place[member] != place[members[0]] for member in members):
            return math.inf
    if any(math.isinf(indexed.costs[b][t]) for b, t in enumerate(place)) or not fits_memory(indexed, place):
        return math.inf
    problem = indexed.problem
    pieces = pieces_of(indexed, place)
    if pieces is None:
        return math.inf
    if problem.most_segments is not None and len(pieces) > problem.most_segments:
        return math.inf
    if problem.most_energy_j is not None and energy_of(indexed, place, pieces) > problem.most_energy_j * (1 + 1e-9):
        return math.inf
    if problem.objective == "latency":
        return _schedule(indexed, place, pieces)[0]
    return max(loads_of(indexed, place, pieces).values())


def fits_memory(indexed: Indexed, place: Sequence[int]) -> bool:
    """Whether no device holds more than it can."""
    held = [0.0] * len(indexed.capacity)
    for block, target in enumerate(place):
        held[indexed.device_of[target]] += indexed.memory[block]
    return all(used <= most for used, most in zip(held, indexed.capacity, strict=True))


def fault(indexed: Indexed, place: Sequence[int]) -> Infeasible | None:  # noqa: PLR0911 - one return a limit
    """The limit that a placement breaks, or None."""
    problem = indexed.problem
    specs = {block.id: block for block in problem.blocks}
    for block, target in enumerate(place):
        name, way = indexed.names[block], problem.targets[target].id
        if math.isinf(indexed.costs[block][target]):
            why = specs[name].refused.get(way, "it has no cost there")
            return _broken(f"block {name!r} is on {way!r}, which does not take it: {why}.", name, "target", None)
    for members in indexed.items:
        for member in members:
            if place[member] != place[members[0]]:
                pair = f"{indexed.names[members[0]]!r} and {indexed.names[member]!r}"
                return _broken(f"blocks {pair} share a group and are parted.", indexed.names[member], "group", None)
    for d, device in enumerate(problem.devices):
        held = math.fsum(_held(indexed, place, d))
        if held > indexed.capacity[d]:
            text = f"device {device.id!r} holds {held:.6g} bytes, {device.memory_bytes:.6g} are allowed."
            return _broken(text, None, "memory", held - device.memory_bytes)
    pieces = pieces_of(indexed, place)
    if pieces is None:
        return _broken(f"the pieces are not of the form {problem.pieces!r}.", None, "segments", None)
    if problem.most_segments is not None and len(pieces) > problem.most_segments:
        text = f"there are {len(pieces)} segments, {problem.most_segments} are allowed."
        return _broken(text, None, "segments", len(pieces) - problem.most_segments)
    energy = energy_of(indexed, place, pieces)
    if problem.most_energy_j is not None and energy > problem.most_energy_j * (1 + 1e-9):
        text = f"a request takes {energy:.6g} J, {problem.most_energy_j:.6g} are allowed."
        return _broken(text, None, "energy", energy - problem.most_energy_j)
    if math.isinf(max(loads_of(indexed, place, pieces).values())):
        return _broken("a value crosses between devices that have no link.", None, "link", None)
    return None


def _broken(text: str, block: str | None, limit: str, excess: float | None) -> Infeasible:
    return Infeasible(f"placement: {text}", "Place it otherwise.", block=block, limit=limit, excess=excess)


def _held(indexed: Indexed, place: Sequence[int], device: int) -> list[float]:
    return [indexed.memory[b] for b, t in enumerate(place) if indexed.device_of[t] == device]


def by_target(indexed: Indexed, place: Sequence[int]) -> list[list[int]]:
    """Blocks of each target that is used; on a host each block alone."""
    found: dict[int, list[int]] = {}
    for block, target in enumerate(place):
        found.setdefault(-1 - block if indexed.host[target] else target, []).append(block)
    return list(found.values())


def pieces_of(indexed: Indexed, place: Sequence[int]) -> list[list[int]] | None:
    """The segments that a placement means; None when the problem's `pieces` forbids them.

    Under 'many', a block's level is 0, or the level of what it reads, one more where that is on another target;
    connected blocks of equal target and level are one segment. Levels never fall along a flow and rise between
    targets, so segments are convex and can be ordered.
    """
    kind = indexed.problem.pieces
    if kind == "many":
        return _level_pieces(indexed, place)
    pieces = by_target(indexed, place)
    if kind == "one":
        return pieces if _ordered(indexed, pieces) else None
    return pieces if all(is_convex(indexed, piece) for piece in pieces if not indexed.host[place[piece[0]]]) else None


def _level_pieces(indexed: Indexed, place: Sequence[int]) -> list[list[int]]:
    level = [0] * len(place)
    root = list(range(len(place)))

    def find(block: int) -> int:
        while root[block] != block:
            root[block] = root[root[block]]
            block = root[block]
        return block

    for block, target in enumerate(place):
        before = indexed.predecessors[block]
        level[block] = max((level[b] + (place[b] != target) for b in before), default=0)
        if not indexed.host[target]:
            for b in before:
                if place[b] == target and level[b] == level[block]:
                    root[find(block)] = find(b)
    found: dict[int, list[int]] = {}
    for block in range(len(place)):
        found.setdefault(find(block), []).append(block)
    return list(found.values())


def is_convex(indexed: Indexed, piece: Sequence[int]) -> bool:
    """No path leaves the piece and comes back. Only blocks between its first and last can be on such a path."""
    inside = set(piece)
    tainted: set[int] = set()
    for block in range(piece[0], piece[-1] + 1):
        if block in inside:
            if any(b in tainted for b in indexed.predecessors[block]):
                return False
        elif any(b in tainted or b in inside for b in indexed.predecessors[block]):
            tainted.add(block)
    return True


def _ordered(indexed: Indexed, pieces: Sequence[Sequence[int]]) -> bool:
    """Whether the pieces have an order in which each reads only from earlier ones."""
    owner = {block: number for number, piece in enumerate(pieces) for block in piece}
    after = [{owner[s] for b in piece for s in indexed.successors[b]} - {p} for p, piece in enumerate(pieces)]
    waits = [0] * len(pieces)
    for targets in after:
        for p in targets:
            waits[p] += 1
    ready = [p for p, count in enumerate(waits) if not count]
    done = 0
    while ready:
        done += 1
        for p in after[ready.pop()]:
            waits[p] -= 1
            if not waits[p]:
                ready.append(p)
    return done == len(pieces)


def energy_of(indexed: Indexed, place: Sequence[int], pieces: Sequence[Sequence[int]]) -> float:
    """Watts x time over the blocks and launches."""
    blocks = math.fsum(indexed.watts[t] * indexed.costs[b][t] for b, t in enumerate(place))
    return blocks + math.fsum(indexed.watts[t] * indexed.launch[t] for t in (place[piece[0]] for piece in pieces))


def loads_of(indexed: Indexed, place: Sequence[int], pieces: Sequence[Sequence[int]]) -> dict[tuple[int, int], float]:
    """(device, device) or (source device, sink device) -> time that one request keeps it busy."""
    parts: dict[tuple[int, int], list[float]] = {}
    for piece in pieces:
        target = place[piece[0]]
        device = indexed.device_of[target]
        share = indexed.lanes[target] / indexed.device_lanes[device]
        found = parts.setdefault((device, device), [])
        found.append(indexed.launch[target] * share)
        found.extend(indexed.costs[block][target] * share for block in piece)
    on_device = indexed.problem.transfers == "device"
    host = {indexed.device_of[t] for t, is_host in enumerate(indexed.host) if is_host}
    for wire in indexed.wires:
        home = indexed.device_of[place[wire.source]]
        readers = {indexed.device_of[place[sink]] for sink in wire.sinks} - {home}
        for reader in readers:
            if not on_device:
                parts.setdefault((home, reader), []).append(wire.times[home][reader])
            elif reader not in host:
                parts[reader, reader].append(wire.times[home][reader])
        if on_device and readers and home not in host:
            parts[home, home].append(max(wire.times[home][reader] for reader in readers))
    return {key: math.fsum(times) for key, times in parts.items()}


def _schedule(indexed: Indexed, place: Sequence[int], pieces: Sequence[Sequence[int]]) -> tuple[float, list[int]]:
    """End of the last piece, and the pieces in the order in which they go; (inf, given order) when they have none."""
    count = len(pieces)
    owner = [0] * len(place)
    for number, piece in enumerate(pieces):
        for block in piece:
            owner[block] = number
    devices = [indexed.device_of[place[piece[0]]] for piece in pieces]
    lasts = [indexed.launch[place[piece[0]]] + math.fsum(indexed.costs[b][place[b]] for b in piece) for piece in pieces]
    moves = _moves(indexed, owner, devices)
    host = {indexed.device_of[t] for t, is_host in enumerate(indexed.host) if is_host}
    into: list[list[tuple[int, float, int]]] = [[] for _ in pieces]  # (source piece, time, wire) of each read
    after: list[dict[int, float]] = [{} for _ in pieces]
    on_device = indexed.problem.transfers == "device"
    for wire, source, sink, time in moves:
        delay = 0.0 if on_device else time
        into[sink].append((source, delay, wire))
        after[source][sink] = max(after[source].get(sink, 0.0), delay)
    if on_device:
        _add_transfers(moves, devices, host, lasts)
    topological = _topological(after)
    if len(topological) < count:
        return math.inf, list(range(count))
    tail = [0.0] * count
    for p in reversed(topological):
        tail[p] = lasts[p] + max((delay + tail[q] for q, delay in after[p].items()), default=0.0)
    place_in_order = {p: i for i, p in enumerate(topological)}
    order = sorted(range(count), key=lambda p: (-tail[p], place_in_order[p]))
    return _run(indexed, [place[piece[0]] for piece in pieces], lasts, into, order), order


def _moves(indexed: Indexed, owner: Sequence[int], devices: Sequence[int]) -> list[tuple[int, int, int, float]]:
    """(wire, source piece, sink piece, time) wherever a piece reads from another."""
    moves = []
    for number, wire in enumerate(indexed.wires):
        source = owner[wire.source]
        for sink in dict.fromkeys(owner[s] for s in wire.sinks):
            if sink != source:
                moves.append((number, source, sink, wire.times[devices[source]][devices[sink]]))
    return moves


def _add_transfers(
    moves: Sequence[tuple[int, int, int, float]], devices: Sequence[int], host: set[int], lasts: list[float]
) -> None:
    """Under `transfers='device'` a piece is busy for each distinct value that it reads from or makes for others."""
    made: set[tuple[int, int]] = set()
    for wire, source, sink, time in moves:
        if devices[sink] not in host:
            lasts[sink] += time
        if devices[source] not in host and (wire, source) not in made and devices[source] != devices[sink]:
            made.add((wire, source))
            lasts[source] += time


def _topological(after: Sequence[Mapping[int, float]]) -> list[int]:
    waits = [0] * len(after)
    for targets in after:
        for p in targets:
            waits[p] += 1
    ready = [p for p, waiting in enumerate(waits) if not waiting]
    heapq.heapify(ready)
    order = []
    while ready:
        p = heapq.heappop(ready)
        order.append(p)
        for q in after[p]:
            waits[q] -= 1
            if not waits[q]:
                heapq.heappush(ready, q)
    return order


def _run(
    indexed: Indexed,
    target: Sequence[int],
    lasts: Sequence[float],
    into: Sequence[Sequence[tuple[int, float, int]]],
    order: Sequence[int],
) -> float:
    """End of the last piece when pieces, and the transfers into each, are started in that order."""
    link_free: dict[tuple[int, int], float] = {}
    arrived: dict[tuple[int, int], float] = {}  # (wire, device) -> time: a value is moved once to each device
    lane_free = [[0.0] * lanes for lanes in indexed.device_lanes]
    done = [0.0] * len(order)
    for p in order:
        device = indexed.device_of[target[p]]
        start = 0.0
        for source, delay, wire in sorted(into[p], key=lambda read: (done[read[0]], read[2])):
            home = indexed.device_of[target[source]]
            if home == device or delay == 0.0:
                start = max(start, done[source])
                continue
            if (wire, device) not in arrived:
                end = max(done[source], link_free.get((home, device), 0.0)) + delay
                link_free[home, device] = arrived[wire, device] = end
            start = max(start, arrived[wire, device])
        if indexed.host[target[p]]:
            done[p] = start + lasts[p]
            continue
        lanes = lane_free[device]
        need = indexed.lanes[target[p]]
        lanes.sort()
        start = max(start, lanes[need - 1])
        done[p] = start + lasts[p]
        lanes[:need] = [done[p]] * need
    return max(done)

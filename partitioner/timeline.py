"""The latency of one request as an integer programme: one piece on each of several equal accelerators, a free host.

Accelerators are numbered in an order in which their pieces can run (there always is one, and they do not differ), so
`past[block][k]` says that a block comes after the k first pieces, or is in the next; that rules out cycles and most of
the symmetry. Beside the times of the pieces, every path through the graph bounds the end: a block's `reach` is the
cost of the costliest path up to it, with the transfers on it, and no piece ends before those of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgert.partitioner.indexed import Indexed
from edgert.partitioner.integer import TICKS, Answer, Programme, add_device_wire

__all__ = ["fits_timeline", "solve_timeline"]


def fits_timeline(indexed: Indexed) -> bool:
    """Whether `solve_timeline` states the problem's rules: one piece each on accelerators that do not differ."""
    problem = indexed.problem
    workers = [t for t, host in enumerate(indexed.host) if not host]
    alike = len({indexed.twins[t] for t in workers}) <= 1
    plain = problem.most_segments is None and problem.most_energy_j is None
    return problem.transfers in ("device", "free") and problem.pieces == "one" and alike and plain


def solve_timeline(indexed: Indexed, start: Sequence[int], cost: float, left_s: Callable[[], float]) -> Answer:
    """The earliest end of one request, from the valid assignment `start` of that cost. Requires `fits_timeline`."""
    if cost <= 0.0:
        return Answer(list(start), 0.0, False)
    return _Timeline(indexed, start, cost).solve_for(left_s)


class _Timeline:
    """The variables of the programme, block by block in topological order."""

    def __init__(self, indexed: Indexed, start: Sequence[int], cost: float) -> None:
        self.indexed = indexed
        self.workers = [t for t, host in enumerate(indexed.host) if not host]
        self.hosts = [t for t, host in enumerate(indexed.host) if host]
        self.start = _ordered_start(indexed, start, self.workers)
        self.began = indexed.spread(self.start)
        self.programme = Programme(indexed, cost / TICKS)
        self.model = self.programme.model
        self.top = 2 * TICKS
        self.end = self._time()
        self.begins = [self._time() for _ in self.workers]
        self.ends = [self._time() for _ in self.workers]

    def _time(self) -> Any:
        return self.model.new_int_var(0, self.top, "")

    def solve_for(self, left_s: Callable[[], float]) -> Answer:
        """State everything, then solve."""
        self._add_order()
        self._add_loads()
        self._add_blocks()
        self._hint_times()
        self.programme.hint(self.start)
        return self.programme.solve(self.end, left_s)

    def at(self, block: int, k: int) -> Any:
        """Whether the block is on the k-th accelerator."""
        return self.programme.at(self.indexed.item_of[block], self.workers[k])

    def hosted(self, block: int) -> Any:
        """Whether the block is on a host."""
        return sum(self.programme.at(self.indexed.item_of[block], t) for t in self.hosts)

    def _add_order(self) -> None:
        """past[block][k]: the block comes after the k-th piece, or is in it; never falls along a flow."""
        count, model = len(self.workers), self.model
        past: list[list[Any]] = []
        was: list[int] = []  # in the start: how many pieces the block is past, its own not among them
        number = {t: k for k, t in enumerate(self.workers)}
        for block, before in enumerate(self.indexed.predecessors):
            rows = [model.new_bool_var("") for _ in range(count + 1)]  # index k: past piece k - 1, so rows[0] is free
            later: Any = 0
            for k in range(count, -1, -1):
                # On accelerator k a block is past all before it and not past k itself; on a host it may be anywhere.
                later = later + (self.at(block, k) if k < count else 0)
                model.add(rows[k] >= later)
                model.add(rows[k] <= later + self.hosted(block))
            for b in before:
                for k in range(count + 1):
                    model.add(rows[k] >= past[b][k])
                    if k:
                        model.add(rows[k] >= self.at(b, k - 1) + self.hosted(block) - 1)
            past.append(rows)
            own = number.get(self.began[block])
            behind = max((was[b] + (own is None and self.began[b] in number) for b in before), default=0)
            was.append(behind if own is None else own)
            for k, var in enumerate(rows):
                self.programme.hints[var.index] = int(k <= was[-1])

    def _add_loads(self) -> None:
        model, indexed = self.model, self.indexed
        parts: dict[tuple[int, int], list[Any]] = {}
        host = {indexed.device_of[t] for t in self.hosts}
        if indexed.problem.transfers == "device":
            for wire in indexed.wires:
                home = indexed.item_of[wire.source]
                sinks = sorted({indexed.item_of[s] for s in wire.sinks} - {home})
                if sinks:
                    add_device_wire(self.programme, wire.times, home, sinks, host=host, parts=parts, start=self.start)
        for k, t in enumerate(self.workers):
            terms = [
                self.programme.ticks(indexed.item_costs[item][t]) * found[t]
                for item, found in enumerate(self.programme.chosen)
                if t in found
            ]
            d = indexed.device_of[t]
            model.add(self.ends[k] >= self.begins[k] + sum(terms) + sum(parts.get((d, d), [])))
            model.add(self.end >= self.ends[k])

    def _add_blocks(self) -> None:
        """When each block's values are there, and the costliest path up to it."""
        model, indexed = self.model, self.indexed
        ready = self.ready = [self._time() for _ in indexed.names]
        reach = self.reach = [self._time() for _ in indexed.names]
        move = _wire_ticks(self.programme, indexed)
        for block, before in enumerate(indexed.predecessors):
            item = indexed.item_of[block]
            found = self.programme.chosen[item]
            spent = sum(self.programme.ticks(indexed.costs[block][t]) * var for t, var in found.items())
            model.add(reach[block] >= spent)
            model.add(ready[block] >= reach[block])
            model.add(self.end >= ready[block])  # a host's block may be the last, and `reach` waits for no whole piece
            for t in self.hosts:
                if t in found:
                    own = self.programme.ticks(indexed.costs[block][t])
                    for b in before:
                        model.add(ready[block] >= ready[b] + own).only_enforce_if(found[t])
            for k, t in enumerate(self.workers):
                if t not in found:
                    continue
                model.add(ready[block] >= self.ends[k]).only_enforce_if(found[t])
                model.add(self.ends[k] >= reach[block]).only_enforce_if(found[t])
                for b in before:
                    if indexed.item_of[b] == item:
                        continue
                    there = self.at(b, k)
                    literals = [found[t]] if isinstance(there, int) else [found[t], ~there]
                    model.add(self.begins[k] >= ready[b]).only_enforce_if(literals)
            for b in before:
                model.add(reach[block] >= reach[b] + spent + self._path_move(b, block, move.get((b, block), 0)))

    def _hint_times(self) -> None:
        """The start's times, in ticks."""
        indexed, place, move = self.indexed, self.began, _wire_ticks(self.programme, self.indexed)
        ticks = [self.programme.ticks(indexed.costs[b][t]) for b, t in enumerate(place)]
        ready = [0] * len(place)
        begins, ends = [0] * len(self.workers), [0] * len(self.workers)
        number = {t: k for k, t in enumerate(self.workers)}
        blocks_of: list[list[int]] = [[] for _ in self.workers]
        for block, t in enumerate(place):
            if t in number:
                blocks_of[number[t]].append(block)

        def host_ready(limit: int) -> None:
            for block, t in enumerate(place):
                if t not in number:
                    ready[block] = ticks[block] + max((ready[b] for b in indexed.predecessors[block]), default=0)
                elif number[t] < limit:
                    ready[block] = ends[number[t]]

        for k, t in enumerate(self.workers):
            host_ready(k)
            reads = {b for block in blocks_of[k] for b in indexed.predecessors[block] if place[b] != t}
            begins[k] = max((ready[b] for b in reads), default=0)
            ends[k] = begins[k] + self.load_hint(k)
        host_ready(len(self.workers))
        reach = [0] * len(place)
        for block, before in enumerate(indexed.predecessors):
            paths = [
                reach[b]
                + move.get((b, block), 0)
                * ((place[b] != place[block]) * ((place[b] in number) + (place[block] in number)))
                for b in before
            ]
            reach[block] = ticks[block] + max(paths, default=0)
        hints = self.programme.hints
        for var, value in zip(
            (*self.begins, *self.ends, *self.ready, *self.reach), (*begins, *ends, *ready, *reach), strict=True
        ):
            hints[var.index] = value
        hints[self.end.index] = max((*ends, *ready, *reach))

    def load_hint(self, k: int) -> int:
        """Ticks of the k-th piece in the start."""
        indexed, t, programme = self.indexed, self.workers[k], self.programme
        total = sum(programme.ticks(indexed.item_costs[i][t]) for i, at in enumerate(self.start) if at == t)
        if indexed.problem.transfers == "device":
            for wire in indexed.wires:
                sinks = {indexed.item_of[s] for s in wire.sinks}
                here = self.start[indexed.item_of[wire.source]] == t
                if any((self.start[s] == t) != here for s in sinks):
                    total += programme.ticks(max(max(row) for row in wire.times))
        return total

    def _path_move(self, b: int, block: int, ticks: int) -> Any:
        """Ticks on the path for leaving b's accelerator and for entering the block's, as two binaries a worker."""
        if not ticks or self.indexed.item_of[b] == self.indexed.item_of[block]:
            return 0
        total: Any = 0
        for k in range(len(self.workers)):
            here, there = self.at(b, k), self.at(block, k)
            crossing = self.model.new_int_var(0, 1, "")
            # Minimised with the end: at least |here - there|; leaving and entering each add theirs once.
            self.model.add(crossing >= here - there)
            self.model.add(crossing >= there - here)
            t = self.workers[k]
            parted = (self.began[b] == t) != (self.began[block] == t)
            self.programme.hints[crossing.index] = int(parted)
            total = total + ticks * crossing
        return total


def _ordered_start(indexed: Indexed, start: Sequence[int], workers: Sequence[int]) -> list[int]:
    """The same assignment with the accelerators numbered in an order in which their pieces run."""
    place = indexed.spread(start)
    level: dict[int, set[int]] = {t: set() for t in workers}  # target -> targets that must run before it
    above: list[set[int]] = []
    for block, before in enumerate(indexed.predecessors):
        own = {place[block]} if place[block] in level else set()
        above.append(own.union(*(above[b] for b in before)))
    for block, found in enumerate(above):
        if place[block] in level:
            level[place[block]] |= found
    # Within an acyclic set of pieces, what must run before grows strictly along the order.
    for _ in workers:
        for t in workers:
            level[t] = level[t].union(*(level[other] for other in level[t]))
    used = sorted((t for t in workers if t in place), key=lambda t: (len(level[t]), t))
    renamed = dict(zip(used, workers, strict=False))
    return [renamed.get(t, t) for t in start]


def _wire_ticks(programme: Programme, indexed: Indexed) -> dict[tuple[int, int], int]:
    """(block, block that reads it) -> ticks to move the values between them, each in or out of an accelerator."""
    found: dict[tuple[int, int], int] = {}
    if indexed.problem.transfers == "device":
        for wire in indexed.wires:
            time = max(max(row) for row in wire.times)
            for sink in wire.sinks:
                key = wire.source, sink
                found[key] = found.get(key, 0) + programme.ticks(time)
    return found

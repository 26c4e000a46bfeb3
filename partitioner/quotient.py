"""The latency of a placement where each accelerator runs one piece and the host's blocks overlap freely: fast.

Under these rules (`fits_quotient`) nothing competes, so latency is the longest path through the graph whose nodes are
the pieces of the accelerators and the single blocks of the host. `evaluate.cost_of` says the same for any rules; local
search asks thousands of times a second, and this is several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgert.partitioner.indexed import Indexed

__all__ = ["Quotient", "fits_quotient"]


def fits_quotient(indexed: Indexed) -> bool:
    """Whether `Quotient` states the rules: latency, one piece an accelerator, the rest on a host, no other limits, and
    each value's way takes the same time between any two devices.
    """
    problem = indexed.problem
    return (
        problem.objective == "latency"
        and problem.pieces == "one"
        and problem.transfers == "device"
        and problem.most_segments is None
        and problem.most_energy_j is None
        and any(indexed.host)
        and len(set(indexed.device_of)) == len(indexed.device_of)
        and all(len({time for row in wire.times for time in row if time > 0}) <= 1 for wire in indexed.wires)
    )


class Quotient:
    """Costs placements of one problem."""

    def __init__(self, indexed: Indexed) -> None:
        self.indexed = indexed
        self._count = len(indexed.names)
        self._wires = [(w.source, w.sinks, max(time for row in w.times for time in row)) for w in indexed.wires]

    def cost(self, assignment: Sequence[int]) -> float:
        """As `cost_of`: infinite when a limit is broken or the pieces have no order."""
        return self._longest(*self._pieces(assignment))[0] if self._fits(assignment) else math.inf

    def critical(self, assignment: Sequence[int]) -> list[int]:
        """Items on a longest path of a valid assignment."""
        after, last = self._pieces(assignment)
        _, unit, came_from = self._longest(after, last)
        units = set()
        while unit >= 0:
            units.add(unit)
            unit = came_from[unit]
        indexed, count = self.indexed, self._count
        place = indexed.spread(assignment)
        mine = (b if indexed.host[t] else count + t for b, t in enumerate(place))
        return sorted({indexed.item_of[block] for block, unit in enumerate(mine) if unit in units})

    def _fits(self, assignment: Sequence[int]) -> bool:
        indexed = self.indexed
        held = [0.0] * len(indexed.capacity)
        for item, target in enumerate(assignment):
            held[indexed.device_of[target]] += indexed.item_memory[item]
        return all(used <= most for used, most in zip(held, indexed.capacity, strict=True))

    def _pieces(self, assignment: Sequence[int]) -> tuple[list[list[int]], list[float]]:
        """Pieces that read from each piece, and how long each lasts; piece = block on the host, count + target else."""
        indexed, count, host = self.indexed, self._count, self.indexed.host
        place = [assignment[item] for item in indexed.item_of]
        unit = [block if host[target] else count + target for block, target in enumerate(place)]
        last = [0.0] * (count + len(host))
        for target in set(place):
            if not host[target]:
                last[count + target] = indexed.launch[target]
        for block, target in enumerate(place):
            last[unit[block]] += indexed.costs[block][target] + (indexed.launch[target] if host[target] else 0.0)
        after: list[list[int]] = [[] for _ in last]
        for source, sinks, moved in self._wires:
            home = unit[source]
            readers = after[home]
            first = len(readers)
            for sink in sinks:
                there = unit[sink]
                if there != home and there not in readers[first:]:
                    readers.append(there)
                    if there >= count:
                        last[there] += moved
            if home >= count and len(readers) > first:
                last[home] += moved
        return after, last

    def _longest(self, after: Sequence[Sequence[int]], last: Sequence[float]) -> tuple[float, int, list[int]]:
        """Longest path by the pieces' times, its last piece, and whom each waited for; infinite where there is a
        cycle.
        """
        waits = [0] * len(last)
        for sinks in after:
            for sink in sinks:
                waits[sink] += 1
        ready = [piece for piece, waiting in enumerate(waits) if not waiting]
        start = [0.0] * len(last)
        came_from = [-1] * len(last)
        longest, final, done = 0.0, -1, 0
        while ready:
            piece = ready.pop()
            done += 1
            end = start[piece] + last[piece]
            if end > longest:
                longest, final = end, piece
            for sink in after[piece]:
                if end > start[sink]:
                    start[sink], came_from[sink] = end, piece
                waits[sink] -= 1
                if not waits[sink]:
                    ready.append(sink)
        return (longest if done == len(last) else math.inf), final, came_from

"""Joining blocks that may as well be one: a smaller problem with the same optimum, and proof for each rule.

Rules, each applied until none fits:
1. Series in a group: two blocks of one group, where the first is read by the second alone and the second reads the
   first alone, run one after the other on one target in any placement.
2. Idle sources: a block that reads nothing, costs nothing anywhere and holds no memory, with one reader that it can
   follow to every target, is best where its reader is: any other place adds a transfer and joins no pieces.
   Within one group it may hold memory, for there it has no choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgert.partitioner.problem import BlockSpec, Flow, Problem

__all__ = ["Contracted", "contract"]


@dataclass(frozen=True, slots=True)
class Contracted:
    """A smaller problem, and how to read its placements."""

    problem: Problem
    home: Mapping[str, str]
    """Block id of the original -> id of the block that it became part of."""

    def expand(self, placement: Mapping[str, str]) -> dict[str, str]:
        """The placement of the original blocks."""
        return {block: placement[home] for block, home in self.home.items()}


def contract(problem: Problem) -> Contracted:
    """`problem` with blocks joined by the rules above; costs of corresponding placements are equal.

    Nothing is joined where a host has a launch cost or segments are limited: there each block of a host counts.
    """
    hosts = {device.id for device in problem.devices if device.lanes is None}
    counted = any(target.launch_s > 0 for target in problem.targets if target.device in hosts)
    if problem.most_segments is not None or (hosts and counted):
        return Contracted(problem, {block.id: block.id for block in problem.blocks})
    work = _Work(problem)
    pending = [block.id for block in reversed(problem.blocks)]
    while pending:
        name = pending.pop()
        into = work.partner(name) if name in work.blocks else None
        if into is not None:
            pending += [*work.reads[name], into]
            work.join(name, into)
    return work.result()


class _Work:
    """The problem while blocks are joined."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.blocks: dict[str, BlockSpec] = {block.id: block for block in problem.blocks}
        self.home = {block.id: block.id for block in problem.blocks}
        self.flows = dict(enumerate(problem.flows))
        self.makes: dict[str, set[int]] = {name: set() for name in self.blocks}
        self.takes: dict[str, set[int]] = {name: set() for name in self.blocks}
        self.reads: dict[str, dict[str, int]] = {name: {} for name in self.blocks}
        """block -> block that it reads -> number of values."""
        self.readers: dict[str, dict[str, int]] = {name: {} for name in self.blocks}
        for number, flow in self.flows.items():
            self.makes[flow.source].add(number)
            for sink in set(flow.sinks):
                self.takes[sink].add(number)
                self._count(flow.source, sink, 1)

    def _count(self, source: str, sink: str, change: int) -> None:
        for table, a, b in ((self.reads, sink, source), (self.readers, source, sink)):
            table[a][b] = table[a].get(b, 0) + change
            if not table[a][b]:
                del table[a][b]

    def partner(self, name: str) -> str | None:
        """The block to join `name` into, or None."""
        block = self.blocks[name]
        readers = self.readers[name]
        if len(readers) != 1:
            return None
        into = next(iter(readers))
        same = bool(block.group) and self.blocks[into].group == block.group
        idle = not self.reads[name] and not any(block.cost_s.values())
        follows = self.blocks[into].cost_s.keys() <= block.cost_s.keys()
        free = idle and not block.group and not block.memory_bytes and follows
        series = same and set(self.reads[into]) == {name}
        return into if free or series or (same and idle) else None

    def join(self, name: str, into: str) -> None:
        """Make `name` part of `into`."""
        for number in list(self.makes[name]):
            flow = self.flows.pop(number)
            for sink in set(flow.sinks):
                self.takes[sink].discard(number)
                self._count(name, sink, -1)
            rest = tuple(sink for sink in flow.sinks if sink != into)
            if rest:
                self._put(number, replace(flow, source=into, sinks=rest))
        for number in list(self.takes[name]):
            flow = self.flows.pop(number)
            self.makes[flow.source].discard(number)
            for sink in set(flow.sinks):
                self.takes[sink].discard(number)
                self._count(flow.source, sink, -1)
            self._put(number, replace(flow, sinks=tuple(dict.fromkeys(into if s == name else s for s in flow.sinks))))
        first, second = self.blocks.pop(name), self.blocks[into]
        self.blocks[into] = replace(
            second,
            cost_s={t: math.fsum((first.cost_s[t], second.cost_s[t])) for t in second.cost_s if t in first.cost_s},
            memory_bytes=first.memory_bytes + second.memory_bytes,
        )
        self.home[name] = into

    def _put(self, number: int, flow: Flow) -> None:
        self.flows[number] = flow
        self.makes[flow.source].add(number)
        for sink in set(flow.sinks):
            self.takes[sink].add(number)
            self._count(flow.source, sink, 1)

    def result(self) -> Contracted:
        """What is left."""
        for name in self.home:
            home = self.home[name]
            while self.home[home] != home:
                home = self.home[home]
            self.home[name] = home
        smaller = replace(
            self.problem,
            blocks=tuple(self.blocks[block.id] for block in self.problem.blocks if block.id in self.blocks),
            flows=tuple(self.flows.values()),
        )
        return Contracted(smaller, self.home)

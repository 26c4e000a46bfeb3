"""Placements with one piece a target, as ranks: moves that keep the pieces in order, without asking each time.

The pieces of such a placement have an order in which they can run. So each item gets a rank that never falls along a
flow: an odd one for each piece, an even one for the host's items between two pieces. Whatever keeps ranks from falling
is a valid placement again, and when an item is to go where its neighbours forbid it, those in its way can go along
(`closure`). So local search sees valid neighbours alone, at the price of looking at the edges of what moves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from edgert.partitioner.indexed import Indexed
from edgert.partitioner.intervals import item_graph
from edgert.partitioner.order import topological

__all__ = ["Ranks"]

Undo = list[tuple[int, int]]
"""Items and the ranks that they had."""


class Ranks:
    """A placement of items in ranks, while they move."""

    def __init__(self, indexed: Indexed, rank: Sequence[int], owner: Sequence[int]) -> None:
        self.indexed = indexed
        self.after, self.before = ([sorted(found) for found in way] for way in item_graph(indexed))
        self.near = [a + b for a, b in zip(self.after, self.before, strict=True)]
        self.rank = list(rank)
        self.owner = list(owner)
        """[rank] -> target of its piece, -1 while it has none; the host at even ranks."""
        self.count = [0] * len(owner)
        """[rank] -> items there."""
        for r in rank:
            self.count[r] += 1
        used = set(owner)
        self.free = [t for t, host in enumerate(indexed.host) if not host and t not in used]
        """Targets without a piece."""
        self.hosted = -1 not in self.owner[::2]

    @classmethod
    def of(cls, indexed: Indexed, start: Sequence[int]) -> Ranks | None:
        """The valid assignment `start` in ranks; None where its pieces have no order, or there are several hosts."""
        hosts = [t for t, host in enumerate(indexed.host) if host]
        order = _pieces_in_order(indexed, start)
        if order is None or len(hosts) > 1:
            return None
        workers = len(indexed.host) - len(hosts)
        owner = [-1] * (4 * workers + 1)  # twice as many places for pieces as there are pieces
        if hosts:
            owner[::2] = [hosts[0]] * (2 * workers + 1)
        rank = [0] * len(start)
        before = item_graph(indexed)[1]
        pieces = 0
        for items in order:
            target = start[items[0]]
            if indexed.host[target]:
                # behind all that it reads: an even rank stays, an odd one is followed by the next even one
                rank[items[0]] = max((rank[b] + rank[b] % 2 for b in before[items[0]]), default=0)
                continue
            own = 4 * pieces + 1
            owner[own] = target
            pieces += 1
            for item in items:
                rank[item] = own
        return cls(indexed, rank, owner)

    def proposal(self, item: int, chance: random.Random) -> int:
        """A rank for the item: mostly that of a neighbour, or the next one; its own where nothing comes to mind."""
        dice, own = chance.random(), self.rank[item]
        if dice < 0.65 and self.near[item]:
            return self.rank[chance.choice(self.near[item])]
        if dice < 0.9:
            step = 1 if self.hosted else 2
            return min(max(own + chance.choice((-step, step)), 0), len(self.owner) - 1)
        return chance.randrange(0 if self.hosted else 1, len(self.owner), 1 if self.hosted else 2)

    def closure(self, item: int, rank: int, most: int) -> list[int] | None:
        """The items that must go to the rank if that one does; None where they are more than `most`, or where a target
        does not take one.
        """
        target = self.owner[rank] if self.owner[rank] >= 0 else self.free[0] if self.free else -1
        if target < 0:
            return None
        costs, ranks = self.indexed.item_costs, self.rank
        found, seen = [item], {item}
        for each in found:  # grows meanwhile
            if math.isinf(costs[each][target]):
                return None
            for way, behind in ((self.after, True), (self.before, False)):
                for other in way[each]:
                    there = ranks[other]
                    if other not in seen and (there < rank if behind else there > rank):
                        if len(found) >= most:
                            return None
                        seen.add(other)
                        found.append(other)
        return found

    def move(self, items: Sequence[int], rank: int) -> tuple[int, Undo]:
        """Put the items there; the target that they come to, and what `back` wants."""
        undo = [(item, self.rank[item]) for item in items]
        if self.owner[rank] < 0:
            self.owner[rank] = self.free.pop(0)
        for item, old in undo:
            self.count[rank] += 1  # first: a piece that its last item leaves for itself stays
            self._leave(old)
            self.rank[item] = rank
        return self.owner[rank], undo

    def back(self, undo: Undo, targets: Sequence[int]) -> None:
        """Undo a move of items from those targets."""
        for (item, old), target in zip(undo, targets, strict=True):
            if self.owner[old] < 0:
                self.free.remove(target)
                self.owner[old] = target
            self.count[old] += 1
            self._leave(self.rank[item])
            self.rank[item] = old

    def _leave(self, rank: int) -> None:
        self.count[rank] -= 1
        if rank % 2 and not self.count[rank]:
            self.free.append(self.owner[rank])
            self.owner[rank] = -1


def _pieces_in_order(indexed: Indexed, start: Sequence[int]) -> list[list[int]] | None:
    """Items of each piece, of a host each alone, in an order in which they can run; None where there is none."""
    members: dict[int, list[int]] = {}
    unit = [len(indexed.host) + item if indexed.host[t] else t for item, t in enumerate(start)]
    for item, u in enumerate(unit):
        members.setdefault(u, []).append(item)
    after: dict[int, set[int]] = {u: set() for u in members}
    for item, readers in enumerate(item_graph(indexed)[0]):
        after[unit[item]].update(unit[other] for other in readers if unit[other] != unit[item])
    order = topological(after, {u: own[0] for u, own in members.items()})
    return None if order is None else [members[u] for u in order]

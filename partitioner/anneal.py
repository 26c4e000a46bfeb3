"""Local search: a valid placement made better for as long as there is time.

Simulated annealing (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983) with fixed seeds, begun anew from the best at
other heats. Its moves give a block, a run of blocks, a whole segment or the border of one to another target, or let two
neighbours change places; for latency half of them begin on the longest path, since no other move can shorten it alone.
Where each target runs one piece, annealings that shift borders and keep the order of the pieces (`borders`) take turns
with those.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from edgert.partitioner.borders import Borders, accepts
from edgert.partitioner.evaluate import cost_of, is_convex, pieces_of
from edgert.partitioner.indexed import Indexed
from edgert.partitioner.intervals import item_graph, item_orders
from edgert.partitioner.loads import Loads
from edgert.partitioner.quotient import Quotient, fits_quotient

__all__ = ["anneal"]

_SEED = 1
_HEATS = (0.02, 0.05, 0.01, 0.1)
"""Of the cost: what a move may lose at first, in turns."""
_AFRESH = 3
"""Every third annealing begins where the first one did."""
_MOST_IDLE = 5
"""Annealings in a row that find nothing better, after which more would be in vain."""
_LOADS_ROUNDS, _PIECES_ROUNDS, _ROUNDS = 60_000, 12_000, 4_000
_LENGTHS = (1, 1, 1, 2, 3, 5, 8, 13)
_LOOK_EVERY = 40
"""Rounds after which the longest path is looked up again."""
Walk: TypeAlias = "Callable[[Sequence[int], float, random.Random, Iterator[float]], list[int] | None]"
"""(start, its cost, chance, heats as shares of that cost) -> the best that was met, None if it cannot start there."""


def anneal(
    indexed: Indexed, start: Sequence[int], cost: float, left_s: Callable[[], float], rounds: int = 0
) -> tuple[list[int], float]:
    """A placement no worse than the valid `start`, and its cost.

    Throughput is annealed on its loads alone, move by move, latency with one piece an accelerator on the graph of its
    pieces; otherwise each move is costed in full.

    Args:
        indexed: the problem.
        start: target of each item.
        cost: of `start`.
        left_s: seconds that are left; asked now and then.
        rounds: moves of one annealing; 0 for a number that suits the rules.
    """
    if cost <= 0.0:
        return list(start), cost
    walks, usual = _walks(indexed)
    best, best_cost, idle = list(start), cost, 0
    for number in itertools.count():
        walk, heat = walks[number % len(walks)], _HEATS[number // len(walks) % len(_HEATS)]
        # Each one in vain is followed by one that cools twice as slowly.
        heats = (heat * share for share in _cooling((rounds or usual) << idle, left_s))
        begin = (best, best_cost) if number % _AFRESH else (start, cost)
        found = walk(*begin, random.Random(_SEED + number), heats)
        if found is None:
            walks = [other for other in walks if other is not walk]
            continue
        found_cost = cost_of(indexed, indexed.spread(found))
        idle = 0 if found_cost < best_cost * (1 - 1e-9) else idle + 1
        if found_cost < best_cost:
            best, best_cost = found, found_cost
        if idle >= _MOST_IDLE or left_s() <= 0:
            break
    return best, best_cost


def _cooling(rounds: int, left_s: Callable[[], float]) -> Iterator[float]:
    """1 falling to 0 over the rounds, or over the time where that ends first."""
    first_s = left_s()
    share = 0.0
    for number in range(rounds):
        if number % 4 == 0:
            now_s = left_s()
            if now_s <= 0:
                return
            share = max(number / rounds, 1 - now_s / first_s if math.isfinite(first_s) else 0.0)
        yield (1 - share) ** 2


def _walks(indexed: Indexed) -> tuple[list[Walk], int]:
    """Ways to anneal under the problem's rules, to be taken in turns, and how many rounds suit them."""
    problem = indexed.problem
    linked = all(math.isfinite(time) for wire in indexed.wires for row in wire.times for time in row)
    plain = not any(indexed.launch) and problem.most_segments is None
    if problem.objective == "throughput" and linked and plain:
        borders: list[Walk] = [] if problem.pieces == "many" else [Borders(indexed)]
        return [*borders, _LoadsWalk(indexed)], _LOADS_ROUNDS
    if fits_quotient(indexed):
        quotient = Quotient(indexed)
        return [Borders(indexed, quotient), _Walk(indexed, quotient.cost, quotient.critical)], _PIECES_ROUNDS
    return [_Walk(indexed, lambda assignment: cost_of(indexed, indexed.spread(assignment)))], _ROUNDS


def _neighbours(indexed: Indexed) -> list[list[int]]:
    after, before = item_graph(indexed)
    return [sorted(a | b) for a, b in zip(after, before, strict=True)]


class _LoadsWalk:
    """Anneals the loads of devices and links; the form of pieces is asked for only of moves that are good otherwise."""

    def __init__(self, indexed: Indexed) -> None:
        self.indexed = indexed
        self.neighbours = _neighbours(indexed)
        self.order = item_orders(indexed)[0]
        self.at = {item: position for position, item in enumerate(self.order)}
        self.runs = 0.05 if indexed.problem.pieces == "many" else 0.4
        """Share of moves that take several items: where pieces must keep a form, one alone seldom can leave."""

    def __call__(self, start: Sequence[int], cost: float, chance: random.Random, heats: Iterator[float]) -> list[int]:
        loads = Loads(self.indexed, start)
        scale = max(loads.loads)
        best, best_top = list(start), scale
        if scale <= 0:
            return best
        now = loads.height(scale)
        for heat in heats:
            moved = self._moved(loads.place, chance)
            if moved is None:
                continue
            items, old, target = moved
            for item in items:
                loads.move(item, target)
            then = loads.height(scale)
            if not (accepts(then - now, heat, chance) and loads.valid() and self._formed(loads.place, old, target)):
                for item in items:
                    loads.move(item, old)
                continue
            now, top = then, max(loads.loads)
            if top < best_top * (1 - 1e-9):
                best, best_top = list(loads.place), top
        return best

    def _moved(self, place: Sequence[int], chance: random.Random) -> tuple[list[int], int, int] | None:
        """Items of one target, that target, and the one that they go to; None where that changes nothing."""
        item = chance.randrange(len(place))
        old, around = place[item], self.neighbours[item]
        near = around and chance.random() < 0.8
        target = place[chance.choice(around)] if near else chance.randrange(len(self.indexed.device_of))
        run: Sequence[int] = (item,)
        if chance.random() < self.runs:
            length, at = chance.choice(_LENGTHS), self.at[item]
            first = at if chance.random() < 0.5 else max(0, at - length + 1)
            run = self.order[first : first + length]
        costs = self.indexed.item_costs
        items = [other for other in run if place[other] == old and math.isfinite(costs[other][target])]
        return (items, old, target) if items and target != old else None

    def _formed(self, place: Sequence[int], old: int, new: int) -> bool:
        """Whether the pieces of two targets, between which an item has moved, are what the problem allows."""
        indexed = self.indexed
        match indexed.problem.pieces:
            case "many":
                return True
            case "one":
                return pieces_of(indexed, indexed.spread(place)) is not None
            case "convex":
                changed = [target for target in (old, new) if not indexed.host[target]]
                blocks = indexed.spread(place)
                pieces = ([block for block, t in enumerate(blocks) if t == target] for target in changed)
                return all(is_convex(indexed, piece) for piece in pieces if piece)


class _Walk:
    """Anneals whole placements, each costed anew."""

    def __init__(
        self,
        indexed: Indexed,
        cost: Callable[[Sequence[int]], float],
        critical: Callable[[Sequence[int]], list[int]] | None = None,
    ) -> None:
        self.indexed, self.cost, self.critical = indexed, cost, critical
        self.neighbours = _neighbours(indexed)
        self.order = item_orders(indexed)[0]
        self.at = {item: position for position, item in enumerate(self.order)}

    def __call__(self, start: Sequence[int], cost: float, chance: random.Random, heats: Iterator[float]) -> list[int]:
        now, now_cost = list(start), cost
        best, best_cost = list(start), cost
        slow: list[int] = []
        for number, heat in enumerate(heats):
            if self.critical is not None and number % _LOOK_EVERY == 0:
                slow = self.critical(now)
            item = chance.choice(slow) if slow and chance.random() < 0.5 else chance.randrange(len(now))
            moved = self._moved(now, item, chance)
            if moved is None:
                continue
            moved_cost = self.cost(moved)
            if accepts(moved_cost - now_cost, heat * cost, chance):
                now, now_cost = moved, moved_cost
                if now_cost < best_cost:
                    best, best_cost = list(now), now_cost
        return best

    def _moved(self, now: Sequence[int], item: int, chance: random.Random) -> list[int] | None:
        """`now` after one random move at an item; None where that changes nothing."""
        around, dice = self.neighbours[item], chance.random()
        if around and dice < 0.1:
            return self._swapped(now, item, chance.choice(around))
        # Mostly the border of a segment moves: what lies between two targets takes the other's.
        near = around and dice < 0.7
        target = now[chance.choice(around)] if near else chance.randrange(len(self.indexed.device_of))
        if target == now[item]:
            return None
        mine = self._segment(now, item) if dice > 0.95 else self._run(item, chance)
        moved = list(now)
        for other in mine:
            if now[other] == now[item] and math.isfinite(self.indexed.item_costs[other][target]):
                moved[other] = target
        return moved

    def _run(self, item: int, chance: random.Random) -> Sequence[int]:
        """A few items in a row, the given one first or last."""
        length, at = chance.choice(_LENGTHS), self.at[item]
        first = at if chance.random() < 0.5 else max(0, at - length + 1)
        return self.order[first : first + length]

    def _segment(self, now: Sequence[int], item: int) -> Sequence[int]:
        """All that is connected with the item on its target."""
        found, waiting = {item}, [item]
        while waiting:
            for other in self.neighbours[waiting.pop()]:
                if other not in found and now[other] == now[item]:
                    found.add(other)
                    waiting.append(other)
        return sorted(found)

    def _swapped(self, now: Sequence[int], item: int, other: int) -> list[int] | None:
        costs = self.indexed.item_costs
        if now[item] == now[other] or math.isinf(costs[other][now[item]]) or math.isinf(costs[item][now[other]]):
            return None
        moved = list(now)
        moved[item], moved[other] = now[other], now[item]
        return moved

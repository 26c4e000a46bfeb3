"""Trade-offs between time, energy, memory and the number of segments: placements that nothing beats in all of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from edgert.errors import Infeasible
from edgert.partitioner.evaluate import evaluate
from edgert.partitioner.problem import Problem, Solution
from edgert.partitioner.solve import solve

__all__ = ["Trade", "front", "undominated"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Trade:
    """One placement and what it asks for."""

    solution: Solution
    cost: float
    """By the problem's objective."""
    energy_j: float
    memory_bytes: float
    """What the watched device holds; 0 when none is watched."""
    segments: int

    @property
    def values(self) -> tuple[float, ...]:
        """What is to be small, in the order of the fields."""
        return (self.cost, self.energy_j, self.memory_bytes, float(self.segments))


def undominated(points: Iterable[tuple[Sequence[float], Item]]) -> list[Item]:
    """The items whose values (small is good) no other item matches or beats in all of them; of equals the first."""
    kept: list[tuple[tuple[float, ...], Item]] = []
    for raw, item in points:
        values = tuple(raw)
        if any(all(a <= b for a, b in zip(other, values, strict=True)) for other, _ in kept):
            continue
        kept = [(o, i) for o, i in kept if not all(a <= b for a, b in zip(values, o, strict=True))]
        kept.append((values, item))
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]


def front(problem: Problem, time_limit_s: float = 10.0, steps: int = 4, watch: str | None = None) -> tuple[Trade, ...]:
    """Placements from the fastest to the most frugal, none beaten in all of cost, energy, memory and segments.

    The constraint method (Haimes, Lasdon and Wismer, IEEE Transactions on Systems, Man, and Cybernetics 1, 1971): the
    problem is solved under ever tighter limits, one quantity at a time.

    Args:
        problem: its own limits hold throughout.
        time_limit_s: for all solves together.
        steps: limits tried for each quantity.
        watch: id of the device whose memory is to be small.

    Raises:
        Infeasible: the problem itself has no placement.
    """
    deadline = time.monotonic() + time_limit_s
    share = time_limit_s / (2 + 3 * steps)
    best = _trade(problem, solve(problem, share), watch)
    found = [best]
    for tighter in itertools.islice(_tighter(problem, best, steps, watch), 3 * steps):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            found.append(_trade(problem, solve(tighter, min(share, left)), watch))
        except Infeasible:
            continue  # too tight: that end of the front is reached
    return tuple(undominated((trade.values, trade) for trade in found))


def _trade(problem: Problem, solution: Solution, watch: str | None) -> Trade:
    result = evaluate(problem, solution.placement)
    memory = 0.0 if watch is None else result.memory_bytes[watch]
    return Trade(solution, result.cost, result.energy_j, memory, len(result.pieces))


def _tighter(problem: Problem, best: Trade, steps: int, watch: str | None) -> Iterator[Problem]:
    watts = {target.id: target.watts for target in problem.targets}
    least = sum(min(watts[t] * cost for t, cost in block.cost_s.items()) for block in problem.blocks)
    for step in range(1, steps + 1):
        if best.energy_j > least:
            yield replace(problem, most_energy_j=least + (best.energy_j - least) * (1 - step / steps))
        if watch is not None and best.memory_bytes > 0:
            room = best.memory_bytes * (1 - step / steps)
            devices = tuple(replace(d, memory_bytes=room) if d.id == watch else d for d in problem.devices)
            yield replace(problem, devices=devices)
        fewer = best.segments - max(1, round(step * (best.segments - 1) / steps))
        if fewer >= 1:
            yield replace(problem, most_segments=fewer)

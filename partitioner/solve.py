"""The front: picks solvers for a problem, combines them, and hands back the best placement with a valid bound."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from edgert.errors import OptionError
from edgert.partitioner import integer
from edgert.partitioner.anneal import anneal
from edgert.partitioner.bounds import pieces_bound
from edgert.partitioner.chain import is_chain, place_chain, price_chain
from edgert.partitioner.contract import contract
from edgert.partitioner.evaluate import cost_of, evaluate
from edgert.partitioner.exhaustive import lower_bound, search_all
from edgert.partitioner.ideals import fits_ideals, place_ideals
from edgert.partitioner.indexed import Indexed, index
from edgert.partitioner.infeasible import find_fault, nothing_found
from edgert.partitioner.problem import Problem, Solution
from edgert.partitioner.schedule import solve_schedule
from edgert.partitioner.search import first_fit, list_schedule, starts
from edgert.partitioner.timeline import fits_timeline, solve_timeline

__all__ = ["solve"]

_log = logging.getLogger(__name__)

_TINY = 20_000
"""Most placements that are gone through one by one before anything else is tried."""
_FEWEST = 200_000
"""Most placements that are still gone through one by one when no integer programme states the rules."""
_SEARCH_S = 1.2
"""Most time for starts, and again for local search, before an integer programme takes over."""
_START_SHARE, _SEARCH_SHARE = 6, 3
"""Of the time that is left, as divisors: little time is better spent on few starts and a longer search."""
_BESIDE_S = 2.0
"""Least time for local search beside a programme, of which it has a quarter: proofs need the processor, too."""
_MOST_ITEMS = 1_000
"""Local search that costs each move in full gets more than its first share of the time on fewer items only."""
_PROGRAMME_PER_S = 1_000
"""Items x targets that an integer programme can be stated for in a second of a whole core, with time left to search."""


def solve(problem: Problem, time_limit_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> Solution:
    """The best placement found in the time, with the proof of how far it can be from the optimum.

    1. Blocks are joined where that is free (`contract`); what no placement can keep is refused.
    2. A chain is placed exactly (`chain`), so is the throughput of one piece a target where there are few ideals
       (`ideals`), and a small problem by going through all placements (`exhaustive`).
    3. Otherwise starts come from list scheduling and cuts of a line, and local search betters them (`search`); that
       takes a small part of the time, and without OR-Tools all of it.
    4. An integer programme, started there, goes on and gives the bound (`integer`, `timeline`, `schedule`), while local
       search goes on beside it.

    The same problem gives the same answer where the time suffices; where it does not, the machine's speed shows.

    Args:
        problem: what to place.
        time_limit_s: by the clock.
        clock: seconds; one that counts a thread's own time makes answers of a loaded machine like those of a quiet one.

    Raises:
        Infeasible: no placement keeps the limits, or none was found in the time (the message says which).
        OptionError: the time limit is not positive, or the problem is malformed.
    """
    if not time_limit_s > 0:
        raise OptionError(f"time limit {time_limit_s} s is not positive.", "Give some seconds.")
    began = clock()
    smaller = contract(problem)
    indexed = index(smaller.problem)
    joined = len(smaller.problem.blocks) < len(problem.blocks)
    # Where blocks were joined, the answer is costed on the whole problem once more.
    closing_s = min((2.5 if joined else 0.5) * (clock() - began), time_limit_s / 2)
    work = _Work(indexed, began + time_limit_s - closing_s, clock)
    work.run()
    assignment = work.best
    if assignment is None:
        raise nothing_found(work.indexed, work.proved_empty, clock() - began)
    placement = smaller.expand(work.indexed.named(assignment))
    placement = {block.id: placement[block.id] for block in problem.blocks}
    cost = evaluate(problem, placement).cost if joined else work.cost
    bound = cost if work.exact else min(cost, max(0.0, work.bound))
    _log.debug("placed %d blocks by %s: %g, bound %g", len(problem.blocks), work.used, cost, bound)
    return Solution(placement, cost, bound, clock() - began, " + ".join(work.used))


class _Work:
    """One problem while it is solved: the best so far, and what is known of the optimum."""

    def __init__(self, indexed: Indexed, deadline: float, clock: Callable[[], float]) -> None:
        fault = find_fault(indexed)
        if fault is not None:
            raise fault
        self.indexed = indexed
        self.deadline = deadline
        self.clock = clock
        self.best: list[int] | None = None
        self.cost = math.inf
        self.bound = max(lower_bound(indexed), pieces_bound(indexed))
        self.exact = False
        self.proved_empty = False
        self.used: list[str] = []
        self._since = clock(), time.thread_time()
        self._programmed = False  # whether an integer programme searched to the end of the time

    def until(self, seconds: float) -> Callable[[], bool]:
        """Whether there is time, as a callable: at most so many seconds from now, and never past the deadline."""
        left_s = self.within(seconds)
        return lambda: left_s() > 0

    def within(self, seconds: float) -> Callable[[], float]:
        """As `until`: the seconds that are left."""
        end = min(self.deadline, self.clock() + seconds)
        return lambda: end - self.clock()

    @property
    def left_s(self) -> float:
        return self.deadline - self.clock()

    @property
    def core(self) -> float:
        """The share of a core that this thread has had: other work may leave it little."""
        passed_s, used_s = self.clock() - self._since[0], time.thread_time() - self._since[1]
        return min(1.0, used_s / passed_s) if passed_s > 0 else 1.0

    @property
    def done(self) -> bool:
        """Whether nothing better can be found, or there is no time."""
        return self.exact or self.proved_empty or self.cost <= self.bound * (1 + 1e-12) or self.left_s <= 0

    def offer(self, assignment: list[int] | None, solver: str) -> None:
        """Keep the assignment if it is valid and better."""
        if assignment is None:
            return
        cost = cost_of(self.indexed, self.indexed.spread(assignment))
        if cost < self.cost:
            self.best, self.cost = assignment, cost
            if solver not in self.used:
                self.used.append(solver)

    def run(self) -> None:
        """Steps 2 to 4 of `solve`."""
        indexed = self.indexed
        if is_chain(indexed):
            found, cost = place_chain(indexed)
            self.offer(found, "chain")
            self.bound = max(self.bound, cost)
            self.exact = self.cost <= cost * (1 + 1e-9)
            self.proved_empty = found is None
            if not self.done:
                self._price_chain()
        if not self.done and fits_ideals(indexed):
            self._ideals()
        if self.done:
            self._answer_anyway()
            return
        placements = math.prod(len(indexed.allowed(item)) for item in range(len(indexed.items)))
        # Where all placements are gone through anyway, a start that takes no time is enough.
        self._start(0.0 if placements <= _TINY else min(_SEARCH_S, self.left_s / _START_SHARE))
        if placements <= _TINY:
            self._go_through_all(self.left_s)
        if not self.done and self.best is not None:
            self._improve(self.within(min(_SEARCH_S, self.left_s / _SEARCH_SHARE)))
        if not self.done and integer.available():
            self._programme()
        if not self.done and placements <= _FEWEST:
            self._go_through_all(self.left_s)
        cheap = indexed.problem.objective == "throughput" and indexed.problem.pieces == "many"
        worth = cheap or len(indexed.items) <= _MOST_ITEMS
        if not self.done and self.best is not None and not self._programmed and worth:
            self._improve(self.within(self.left_s))

    def _answer_anyway(self) -> None:
        """Where the time was over before anything was found: what takes none."""
        if self.best is None and not self.proved_empty:
            for start in starts(self.indexed, lambda: False):
                self.offer(start, "starts")

    def _price_chain(self) -> None:
        """A chain that is too large for a device's memory."""
        for start in (first_fit(self.indexed), list_schedule(self.indexed)):
            self.offer(start, "starts")

        def offer(found: list[int]) -> float:
            self.offer(found, "chain")
            return self.cost

        bound = price_chain(self.indexed, self.cost, offer, self.until(min(2 * _SEARCH_S, self.left_s / 2)))
        self.bound = max(self.bound, bound)

    def _ideals(self) -> None:
        """Throughput of one piece a target, where the graph has few ideals."""
        answer = place_ideals(self.indexed)
        if answer is not None:
            found, cost = answer
            self.offer(found, "ideals")
            self.exact = found is not None and self.cost <= cost * (1 + 1e-9)
            self.proved_empty = found is None

    def _start(self, seconds: float) -> None:
        more = self.until(seconds)
        for start in starts(self.indexed, more):
            self.offer(start, "starts")
            if not more() and self.best is not None:
                break

    def _improve(self, left_s: Callable[[], float]) -> None:
        assert self.best is not None  # the callers look
        found, cost = anneal(self.indexed, self.best, self.cost, left_s)
        if cost < self.cost:
            self.best, self.cost = found, cost
            if "search" not in self.used:
                self.used.append("search")

    def _go_through_all(self, seconds: float) -> None:
        found, cost, complete = search_all(self.indexed, self.best, self.cost, self.until(seconds))
        if found is not None and cost < self.cost:
            self.best, self.cost = found, cost
        if complete:
            self.used.append("exhaustive")
            self.exact = self.best is not None
            self.proved_empty = self.best is None

    def _programme(self) -> None:
        indexed, problem = self.indexed, self.indexed.problem
        size = len(indexed.items) * len(indexed.device_of)
        if size > _PROGRAMME_PER_S * (self.left_s - integer.lead_s()) * self.core:
            return
        if problem.objective == "throughput" or self.best is None:
            throughput = problem.objective == "throughput"
            worst = self.cost if self.best is not None else _worst(indexed)
            answer = self._beside(partial(integer.solve_throughput, indexed, self.best, worst, self.within(math.inf)))
            self.proved_empty = answer.infeasible and self.best is None
            self._take(answer, "integer", throughput)
            if throughput or self.best is None or self.done:
                return
        if fits_timeline(indexed):
            solving = partial(solve_timeline, indexed, self.best, self.cost, self.within(math.inf))
            self._take(self._beside(solving), "timeline", True)
        elif problem.transfers != "device":
            share = 0.6 if problem.pieces == "many" else 1.0
            solving = partial(solve_schedule, indexed, self.best, self.cost, self.within(share * self.left_s))
            self._take(self._beside(solving), "schedule", True)
            self._programmed = False

    def _beside(self, programme: Callable[[], integer.Answer]) -> integer.Answer:
        """What the programme answers; meanwhile local search goes on in this thread, which CP-SAT does not need."""
        if self.best is None:
            return programme()
        with ThreadPoolExecutor(1, thread_name_prefix="edgert programme") as pool:
            running = pool.submit(programme)
            left_s = self.within(max(_BESIDE_S, self.left_s / 4))
            self._improve(lambda: 0.0 if running.done() else left_s())
            return running.result()

    def _take(self, answer: integer.Answer, name: str, bounds: bool) -> None:
        self._programmed = True
        before = self.cost
        self.offer(answer.assignment, name)
        if bounds and math.isfinite(answer.bound) and answer.bound > self.bound:
            self.bound = answer.bound
            if self.cost == before:
                self.used.append(f"bound by {name}")


def _worst(indexed: Indexed) -> float:
    """A cost that no placement exceeds."""
    blocks = sum(max(c for c in costs if math.isfinite(c)) for costs in indexed.item_costs)
    moves = sum(max(t for row in w.times for t in row if math.isfinite(t)) for w in indexed.wires)
    return 1.0 + blocks + 2 * moves * len(indexed.capacity) + sum(indexed.launch) * len(indexed.names)

"""A plan whose segments run in executors: several requests under way at once, each answered exactly once.

The ways to answer are the plan's own segments, then those of its fallbacks that need executors too, and at the end the
reserve: its CPU fallbacks in this process, prepared in the background from the start. A request that an executor loses
is run again on the next way that can; what a lost attempt still sends is thrown away by its number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

from edgert.errors import DeviceLost
from edgert.execution import fleet as fleets
from edgert.execution.dispatcher import Dispatcher
from edgert.execution.events import Events
from edgert.execution.fleet import Fleet
from edgert.execution.flight import Flight, Promise
from edgert.execution.member import Member
from edgert.execution.pipeline import Made
from edgert.execution.reserve import Reserve
from edgert.execution.shadow import Drift
from edgert.execution.trial import Witness
from edgert.execution.ways import Way
from edgert.plan import Plan
from edgert.profile import Target
from edgert.tensor import Data

Answer = TypeVar("Answer")


class StagedPipeline:
    """Runs requests of one plan through executors. Thread-safe; same calls as `Pipeline`."""

    def __init__(
        self, plan: Plan, fleet: Fleet, ways: Sequence[Way], reserve: Reserve, *, name: str, witness: Witness,
        verified: frozenset[Target], refusals: Sequence[str] = (), release: Callable[[], None] = lambda: None,
        drifted: Callable[[Drift], None] = lambda _drift: None,
    ) -> None:  # fmt: skip
        """Order the plan's segments, and wait until it is known which way answers.

        Args:
            plan: what to run.
            fleet: whose executors do it; given back by `close`.
            ways: best first.
            reserve: the last resort.
            name: of the model, for messages.
            witness: keeps a request and its answer, to try executors on.
            verified: targets whose numbers a reference confirmed.
            refusals: why ways of the plan are not among these.
            release: called once all is closed.
            drifted: told of wrong numbers, in a thread that may take its time.

        Raises:
            DeviceLost: no way prepares and there is no reserve; with each one's reason.
        """
        self.plan, self.name, self.verified, self.limits = plan, name, verified, fleet.limits
        self._fleet, self._reserve, self._release = fleet, reserve, release
        self._dispatcher = Dispatcher(
            plan, fleet, ways, reserve, name=name, witness=witness, refusals=refusals, drifted=drifted
        )
        self._closed = False
        fleet.loop.post(self._dispatcher.begin)
        fleet.loop.wait(self._dispatcher.settled)
        ladder = self._dispatcher.ladder
        if ladder.usable() is None and (no_reserve := reserve.hopeless()):
            reasons = "; ".join((*refusals, *ladder.hopeless(), no_reserve))
            self.close()
            raise DeviceLost(
                f"{name}: no target of plan {plan.id} prepares ({reasons}).",
                "Look at `edgert probe --refresh`; load again to plan anew.",
            )

    @property
    def events(self) -> Events:
        """What happened to the executors of this process."""
        return self._fleet.events

    def run(self, inputs: Mapping[str, Data]) -> Made:
        """One request, answered by the first way that can.

        Raises:
            TargetError, ChildError: what the first way said, when none could answer.
            Overloaded, Closed: as `submit`.
        """
        return self.submit(inputs, lambda made: made).result()

    def submit(
        self, inputs: Mapping[str, Data], finish: Callable[[Made], Answer], *, deadline_s: float | None = None,
        priority: int = 0,
    ) -> Future[Answer]:  # fmt: skip
        """Start one request.

        Args:
            inputs: checked already; they must not be changed before the answer is there.
            finish: makes the future's result; must not block.
            deadline_s: seconds from now; the answer is `DeadlineExceeded` when they are over.
            priority: higher goes first.

        Raises:
            Overloaded: too many wait, or the answer would come after the deadline.
            Closed: after `close`.
        """
        if self._closed or self._fleet.loop.ended.is_set():  # the latter at the interpreter's end
            raise fleets.closed(self.name)
        dispatcher = self._dispatcher
        dispatcher.admission.enter(deadline_s, priority)
        promise: Promise[Answer] = Promise(lambda: self._fleet.loop.post(lambda: dispatcher.call_off(flight)))
        flight = Flight(0, inputs, promise, finish, priority, given_s=deadline_s or 0.0)
        if deadline_s is not None:
            flight.deadline_s = flight.started_s + deadline_s
        self._fleet.loop.post(lambda: dispatcher.enter(flight))
        return promise

    @property
    def degraded(self) -> bool:
        """Whether the plan's own way cannot answer now."""
        way = self._dispatcher.ladder.usable()
        return way is None or not way.own

    def members(self) -> tuple[Member, ...]:
        """Executors that hold its segments, each once."""
        ways = self._dispatcher.ladder.ways
        return tuple(dict.fromkeys(each for way in ways for members in way.members for each in members))

    def checked(self, targets: tuple[Target, ...]) -> bool:
        """Whether the numbers of what ran were confirmed by a reference."""
        if len(targets) > 1:
            return targets == self.plan.targets and self.plan.verification.verified
        return targets[0] in self.verified

    def close(self) -> None:
        """Answer what was taken, then release everything. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._fleet.loop.post(self._dispatcher.close)
        self._fleet.loop.wait(self._dispatcher.empty)
        done = threading.Event()

        def leave() -> None:
            self._dispatcher.ladder.release()
            done.set()

        self._fleet.loop.post(leave)
        self._fleet.loop.wait(done)
        self._reserve.close()
        fleets.give_back(self._fleet)
        self._release()

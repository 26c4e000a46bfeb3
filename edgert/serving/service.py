"""Requests to the models of a roster: bounded queues, fair turns, priorities, deadlines, and an orderly end.

Knows no socket: every front end submits here and is called back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from edgert.errors import Closed, DeadlineExceeded, EdgertError, Overloaded, RunFailed
from edgert.execution.fair import FairQueue
from edgert.result import Result
from edgert.serving.roster import Loaded, Roster
from edgert.tensor import Data

_log = logging.getLogger(__name__)
_TURN = 1.0
"""What a request costs its model's queue: which goes next is a matter of how many went, whatever they take."""
_PATIENCE = 10
"""Of so many requests one goes by turn alone where models of higher priorities keep others waiting."""
Done: TypeAlias = "Callable[[Result | EdgertError], None]"
"""Called once for each request, in a worker's thread; must not raise and not block."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait."""

    waiting: int = 64
    """Requests of one model; neither those that run are counted nor those of lower priorities than the next one."""
    waiting_bytes: int = 256 << 20
    """Inputs of all requests that wait or run."""
    workers: int = 8
    """Requests that run at once. One model runs as many as its plan has instances."""


@dataclass(frozen=True, slots=True)
class Running:
    """A run that goes on."""

    model: str
    for_s: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests since the start."""

    answered: int = 0
    failed: int = 0
    """Answered with an error."""
    refused: int = 0
    """Not taken: too many waited, or the daemon was stopping."""


@dataclass(frozen=True, slots=True)
class _Request:
    model: str
    inputs: Mapping[str, Data]
    deadline_s: float | None
    taken_s: float
    size_bytes: int
    done: Done
    priority: int = 0


@dataclass(slots=True)
class _Line:
    """One model's queue."""

    waiting: FairQueue[_Request] = field(default_factory=FairQueue)
    """Higher priorities first, but for a tenth; equals in the order in which they came."""
    running: int = 0
    width: int = 1
    """How many may run at once."""
    answered: int = 0


class Service:
    """Takes requests from any thread and has the roster's models answer them."""

    def __init__(
        self, roster: Roster, limits: Limits = Limits(), *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.roster, self.limits = roster, limits
        self._now_s = now_s
        self._condition = threading.Condition()
        self._lines: dict[str, _Line] = {}
        self._started: dict[int, tuple[str, float]] = {}
        self._bytes = self._ranked = 0
        """Of inputs; and requests that were taken while models of other priorities waited."""
        self._counts = Counts()
        self._draining = False
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"edgert worker {number}", daemon=True)
            for number in range(limits.workers)
        ]
        for worker in self._workers:
            worker.start()

    def submit(
        self, model: str, inputs: Mapping[str, Data], deadline_s: float | None, done: Done, *, priority: int = 0
    ) -> None:
        """Take one request; `done` gets the result, or what went wrong.

        Args:
            model: its name.
            inputs: by name; arrays that nobody else changes.
            deadline_s: on `time.monotonic()`; None for none.
            done: called once, later.
            priority: as of `edgert.Model.submit`: higher goes first.

        Raises:
            ModelNotServed: there is no such model; `done` is not called then, as for the others.
            Overloaded: too much waits already.
            Closed: while stopping.
        """
        with self.roster.lend(model):  # an unknown name gets no line
            pass
        size_bytes = sum(item.nbytes for item in inputs.values() if isinstance(item, np.ndarray))
        with self._condition:
            line = self._lines.setdefault(model, _Line())
            try:
                self._admit(model, line, size_bytes, priority)
            except EdgertError:
                self._count(refused=1)
                raise
            request = _Request(model, inputs, deadline_s, self._now_s(), size_bytes, done, priority)
            line.waiting.put(request, model, _TURN, priority)
            self._bytes += size_bytes
            self._condition.notify()

    def counts(self) -> Counts:
        with self._condition:
            return self._counts

    def answered(self, model: str) -> int:
        """Requests of one model that got a result."""
        with self._condition:
            line = self._lines.get(model)
            return line.answered if line else 0

    def waiting(self) -> int:
        """Requests that wait or run."""
        with self._condition:
            return self._in_flight()

    def running(self) -> tuple[Running, ...]:
        """What runs, longest first."""
        now_s = self._now_s()
        with self._condition:
            runs = [Running(model, now_s - since_s) for model, since_s in self._started.values()]
        return tuple(sorted(runs, key=lambda run: -run.for_s))

    def drain(self, limit_s: float) -> bool:
        """Take no more, and wait for those that were taken; False when some are left after `limit_s`."""
        with self._condition:
            self._draining = True
            return self._condition.wait_for(lambda: not self._in_flight(), limit_s)

    def close(self) -> None:
        """Refuse what still waits, and end the workers that do not hang."""
        with self._condition:
            self._draining = self._closed = True
            left = [request for line in self._lines.values() for request in line.waiting.remove(lambda _: True)]
            self._condition.notify_all()
        for request in left:
            request.done(stopping())
        for worker in self._workers:
            worker.join(timeout=1.0)

    def _admit(self, model: str, line: _Line, size_bytes: int, priority: int) -> None:
        if self._draining:
            raise stopping()
        waiting = len(line.waiting) - line.waiting.below(priority)
        if waiting >= self.limits.waiting:
            raise Overloaded(
                f"model {model!r}: {waiting} requests wait already.", "Ask less often, or again later.", waiting=waiting
            )
        if self._bytes and self._bytes + size_bytes > self.limits.waiting_bytes:
            raise Overloaded(
                f"model {model!r}: the inputs of all requests would be {self._bytes + size_bytes} bytes, "
                f"{self.limits.waiting_bytes} may wait.", "Ask less often, or again later.", waiting=waiting,
            )  # fmt: skip

    def _in_flight(self) -> int:
        return len(self._started) + sum(len(line.waiting) for line in self._lines.values())

    def _count(self, answered: int = 0, failed: int = 0, refused: int = 0) -> None:
        old = self._counts
        self._counts = Counts(old.answered + answered, old.failed + failed, old.refused + refused)

    def _work(self) -> None:
        own = threading.get_ident()
        while True:
            with self._condition:
                while (request := self._next()) is None:
                    if self._closed:
                        return
                    self._condition.wait()
                self._started[own] = request.model, self._now_s()
            outcome = self._outcome(request)
            with self._condition:
                line = self._lines[request.model]
                line.running -= 1
                line.answered += isinstance(outcome, Result)
                self._bytes -= request.size_bytes
                self._count(answered=isinstance(outcome, Result), failed=isinstance(outcome, EdgertError))
            # Called before the request counts as gone, so that draining waits for its answer too.
            request.done(outcome)
            with self._condition:
                del self._started[own]
                self._condition.notify_all()

    def _next(self) -> _Request | None:
        """The next request: of the model where the highest priority waits; among equals, and at each tenth request
        among all, of the one whose turn it is. A line that was served goes to the end.
        """
        ready = [model for model, line in self._lines.items() if line.waiting and line.running < line.width]
        if not ready:
            return None
        model = ready[0]
        if len(ready) > 1:
            highest = {name: self._lines[name].waiting.highest() for name in ready}
            self._ranked += len({*highest.values()}) > 1
            if self._ranked % _PATIENCE:
                model = max(ready, key=highest.__getitem__)  # the first of several
        line = self._lines[model] = self._lines.pop(model)
        line.running += 1
        return line.waiting.pop()

    def _outcome(self, request: _Request) -> Result | EdgertError:
        left_s = None if request.deadline_s is None else request.deadline_s - self._now_s()
        if request.deadline_s is not None and left_s is not None and left_s <= 0:
            given_s = request.deadline_s - request.taken_s
            return DeadlineExceeded(
                f"model {request.model!r}: the deadline passed while the request waited.",
                "Give it more time, or ask less often.", deadline_s=given_s,
            )  # fmt: skip
        try:
            with self.roster.lend(request.model) as loaded:
                self._widen(request.model, loaded)
                return loaded.model.submit(request.inputs, deadline_s=left_s, priority=request.priority).result()
        except EdgertError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a fault of ours must reach the caller as well, and end no worker
            _log.exception("model %s: an unexpected error", request.model)
            return RunFailed(f"model {request.model!r}: {type(error).__name__}: {error}.")

    def _widen(self, model: str, loaded: Loaded) -> None:
        """As many runs at once as the plan has instances."""
        plan = loaded.model.plan
        width = max(1, len(plan.instances) // max(1, len(plan.segments)))
        with self._condition:
            self._lines[model].width = width


def stopping() -> Closed:
    """What becomes of a request that was not begun."""
    return Closed("the daemon is stopping.", "Ask again when it is back, or another one.")

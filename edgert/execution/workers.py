"""Threads that run requests in this process, and the bounded queue before them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from edgert.errors import Closed, DeadlineExceeded, Overloaded
from edgert.execution.fair import FairQueue
from edgert.execution.precedence import SHARED, Precedence

Answer = TypeVar("Answer")
MOST_WAITING = 256
"""Requests of one model that may wait; one more is refused."""


@dataclass(slots=True)
class _Task:
    work: Callable[[], Any]
    future: Future[Any]
    priority: int
    until_s: float | None
    deadline_s: float | None


class Workers:
    """Thread-safe. A future can be cancelled until its work begins."""

    def __init__(
        self, width: int, name: str, most_waiting: int = MOST_WAITING, *, threads: int = 1,
        precedence: Precedence = SHARED,
    ) -> None:  # fmt: skip
        """Args:
        width: threads, started when first needed.
        name: of the model, for messages.
        most_waiting: tasks that may wait beside those at work.
        threads: cores that one task takes.
        precedence: among models that share those cores.
        """
        self._width, self._name, self._most_waiting, self.threads = width, name, most_waiting, threads
        self._precedence = precedence
        self._condition = threading.Condition(precedence.lock)
        self._tasks: FairQueue[_Task] = FairQueue()
        self._at_work: Counter[int] = Counter()
        """Tasks that run, by priority."""
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False
        self._mean_s = 0.0
        precedence.join(self)

    def cores_above(self, priority: int) -> int:
        """See `precedence.Party`."""
        running = sum(count for own, count in self._at_work.items() if own > priority)
        return min(self._width, running + self._tasks.above(priority)) * self.threads

    def submit(
        self, work: Callable[[], Answer], *, deadline_s: float | None = None, priority: int = 0
    ) -> Future[Answer]:
        """Have it done in one of the threads.

        Args:
            work: what to do.
            deadline_s: seconds from now; what has not begun by then ends with `DeadlineExceeded`, and so does an
                answer that comes later.
            priority: higher goes first, but for a tenth of the time.

        Raises:
            Overloaded: too many wait, or the answer would come after the deadline, by what was measured.
            Closed: after `close`.
        """
        future: Future[Answer] = Future()
        with self._condition:
            if self._closed:
                raise Closed(f"the model {self._name} was closed.", "Load it again.")
            self._admit(deadline_s)
            first = not self._threads
            if first:
                self._grow()
            until_s = None if deadline_s is None else time.monotonic() + deadline_s
            self._tasks.put(_Task(work, future, priority, until_s, deadline_s), self._name, self._mean_s, priority)
            self._precedence.come(priority)
            if self._idle >= len(self._tasks):
                self._condition.notify()
            elif len(self._threads) < self._width and not first:
                self._grow()
        return future

    def close(self) -> None:
        """Finish what was taken, then end. Harmless twice."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        self._precedence.leave(self)

    def _admit(self, deadline_s: float | None) -> None:
        waiting = len(self._tasks)
        expected_s = (waiting / self._width + 1) * self._mean_s
        if waiting >= self._most_waiting:
            raise Overloaded(
                f"{self._name}: {waiting} requests wait already.", "Send fewer, or later.", waiting=waiting
            )
        if deadline_s is not None and expected_s > deadline_s:
            raise Overloaded(
                f"{self._name}: with {waiting} requests before it, an answer would take about {expected_s:.3f} s, and "
                f"the deadline is in {deadline_s:.3f} s.", "Send fewer, or give more time.", waiting=waiting,
            )  # fmt: skip

    def _grow(self) -> None:
        """Start one more thread.

        Raises:
            Overloaded: this process may start no more, and has none.
        """
        thread = threading.Thread(
            target=self._loop, name=f"edgert {self._name} {len(self._threads)}", daemon=True
        )  # fmt: skip
        try:
            thread.start()
        except RuntimeError as error:
            if not self._threads:
                raise Overloaded(
                    f"{self._name}: {error}.", "Raise the limit of processes (ulimit -u), or end some.", waiting=0
                ) from error
            return  # those that there are do it
        self._threads.append(thread)

    def _loop(self) -> None:
        while (task := self._next()) is not None:
            try:
                self._do(task)
            finally:
                with self._condition:
                    self._at_work[task.priority] -= 1
                    self._precedence.go(task.priority)

    def _next(self) -> _Task | None:
        """The next task, once its turn came; None when closed and done."""
        with self._condition:
            since_s = 0.0
            while True:
                if not self._tasks:
                    if self._closed:
                        return None
                    self._idle += 1
                    self._condition.wait()
                    self._idle -= 1
                    continue
                since_s = since_s or time.monotonic()
                if not self._precedence.wait(self, self._tasks.highest(), since_s, self._mean_s):
                    task = self._tasks.pop()
                    self._at_work[task.priority] += 1
                    return task

    def _do(self, task: _Task) -> None:
        if not task.future.set_running_or_notify_cancel():
            return
        started_s = time.monotonic()
        if task.until_s is not None and started_s > task.until_s:
            task.future.set_exception(self._late(task))
            return
        try:
            answer = task.work()
        except BaseException as error:  # noqa: BLE001 - the future carries it to whoever waits, as in concurrent.futures
            task.future.set_exception(error)
            return
        ended_s = time.monotonic()
        self._mean_s += (ended_s - started_s - self._mean_s) * (0.1 if self._mean_s else 1.0)
        if task.until_s is not None and ended_s > task.until_s:
            task.future.set_exception(self._late(task))
        else:
            task.future.set_result(answer)

    def _late(self, task: _Task) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self._name}: the deadline of {task.deadline_s:.3f} s passed before an answer was there.",
            "Give more time, or send fewer requests.", deadline_s=task.deadline_s,
        )  # fmt: skip

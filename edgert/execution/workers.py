"""Threads that run requests in this process, and the bounded queue before them."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgert.errors import Closed, DeadlineExceeded, Overloaded

Answer = TypeVar("Answer")
MOST_WAITING = 256
"""Requests of one model that may wait; one more is refused."""


@dataclass(order=True, slots=True)
class _Task:
    key: tuple[int, int]
    """Higher priority first, then first come."""
    work: Callable[[], Any] = field(compare=False)
    future: Future[Any] = field(compare=False)
    until_s: float | None = field(compare=False)
    deadline_s: float | None = field(compare=False)


class Workers:
    """Thread-safe. A future can be cancelled until its work begins."""

    def __init__(self, width: int, name: str, most_waiting: int = MOST_WAITING) -> None:
        """Args:
        width: threads, started when first needed.
        name: of the model, for messages.
        most_waiting: tasks that may wait beside those at work.
        """
        self._width, self._name, self._most_waiting = width, name, most_waiting
        self._condition = threading.Condition()
        self._tasks: list[_Task] = []
        self._count = itertools.count()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False
        self._mean_s = 0.0

    def submit(
        self, work: Callable[[], Answer], *, deadline_s: float | None = None, priority: int = 0
    ) -> Future[Answer]:
        """Have it done in one of the threads.

        Args:
            work: what to do.
            deadline_s: seconds from now; what has not begun by then ends with `DeadlineExceeded`, and so does an
                answer that comes later.
            priority: higher goes first.

        Raises:
            Overloaded: too many wait, or the answer would come after the deadline, by what was measured.
            Closed: after `close`.
        """
        future: Future[Answer] = Future()
        with self._condition:
            if self._closed:
                raise Closed(f"the model {self._name} was closed.", "Load it again.")
            self._admit(deadline_s)
            until_s = None if deadline_s is None else time.monotonic() + deadline_s
            heapq.heappush(self._tasks, _Task((-priority, next(self._count)), work, future, until_s, deadline_s))
            if self._idle >= len(self._tasks):
                self._condition.notify()
            elif len(self._threads) < self._width:
                name = f"edgert {self._name} {len(self._threads)}"
                self._threads.append(threading.Thread(target=self._loop, name=name, daemon=True))
                self._threads[-1].start()
        return future

    def close(self) -> None:
        """Finish what was taken, then end. Harmless twice."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

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

    def _loop(self) -> None:
        while True:
            with self._condition:
                while not self._tasks:
                    if self._closed:
                        return
                    self._idle += 1
                    self._condition.wait()
                    self._idle -= 1
                task = heapq.heappop(self._tasks)
            self._do(task)

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

"""Those who take part in a bench (`edgert.race.Contender`): how the calls of each are timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from edgert.devices.remote import Remote, RemoteRunnable
from edgert.model import Model
from edgert.tensor import Data
from edgert.transport.child import Child

CALL_LIMIT_S = 60.0
LONGEST_VISIT_S = 1.0
"""Of all instances together."""
SAMPLE = "bench"
"""Name of the request in a child that holds it."""


class Copy:
    """A target in a process of its own, timed there."""

    def __init__(self, runnable: RemoteRunnable) -> None:
        self._runnable = runnable

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        return self._runnable.time(SAMPLE, calls, at_most_s=at_most_s, timeout_s=CALL_LIMIT_S + at_most_s)


class Together:
    """All instances of a target, each with cores of its own, busy at once in one process: seconds per item."""

    def __init__(self, remote: Remote, runnables: Sequence[RemoteRunnable], cores: Sequence[Sequence[int]]) -> None:
        self._remote, self._runnables, self._cores = remote, runnables, cores

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        del calls  # as many as fit
        seconds = min(at_most_s, LONGEST_VISIT_S)
        started_s = time.perf_counter()
        rate = self._remote.throughput(self._runnables, self._cores, SAMPLE, seconds)
        # The last calls end after the time is over: what they took counts.
        return [(time.perf_counter() - started_s) / max(1.0, rate * seconds)]


class Plain:
    """ONNX Runtime as one gets it without edgert, in a process of its own."""

    def __init__(self, child: Child, request: Mapping[str, Data]) -> None:
        self._child = child
        child.call("hold", {}, request)

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        body = {"calls": calls, "at_most_s": at_most_s}
        answer, _ = self._child.call("time", body, timeout_s=CALL_LIMIT_S + at_most_s)
        return [float(each) for each in answer["seconds"]]


class OneByOne:
    """`Model.run`, as an application calls it."""

    def __init__(self, model: Model, request: Mapping[str, Data]) -> None:
        self._model, self._request = model, request

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        times_s: list[float] = []
        stop_s = time.perf_counter() + at_most_s
        while len(times_s) < calls and (not times_s or time.perf_counter() < stop_s):
            started_s = time.perf_counter()
            self._model.run(self._request)
            times_s.append(time.perf_counter() - started_s)
        return times_s


class Busy:
    """`Model.submit` with two requests per instance under way: seconds per request with every instance busy."""

    def __init__(self, model: Model, request: Mapping[str, Data]) -> None:
        self._model, self._request = model, request
        self._depth = 2 * max(1, len(model.plan.instances))

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        pending: list[Future[Any]] = []
        started_s, done = time.perf_counter(), 0
        calls = max(calls, 2 * self._depth)
        while done < calls and (done == 0 or time.perf_counter() - started_s < at_most_s):
            while len(pending) < self._depth:
                pending.append(self._model.submit(self._request))
            pending.pop(0).result()
            done += 1
        each_s = (time.perf_counter() - started_s) / done
        for future in pending:
            future.result()
        return [each_s]

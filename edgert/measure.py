"""Time targets: a contestant is a target prepared in its child process, which may crash or hang at any call."""

from __future__ import annotations

import logging
import math
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgert.devices.backend import Source
from edgert.devices.hosts import Far
from edgert.devices.remote import Remote, RemoteRunnable
from edgert.errors import ChildError, EdgertError
from edgert.machine import Device
from edgert.profile import Target
from edgert.tensor import Data
from edgert.transport import forked

_log = logging.getLogger(__name__)
_VISIT_S = 0.01
"""A visit lasts about that long: tiny models need many calls for a stable median, large ones are stable by
themselves."""
_MOST_CALLS = 200
_FEWEST_CALLS = 3
_SLOW_S = 0.05
"""A call that long is its own median."""
RUN_LIMIT_S = 60.0
"""For one run of a prepared target, until its own speed is known; beyond it the target counts as hung."""


class Remotes:
    """Child processes that host backends, by name, kept for the next use. Thread-safe.

    What a child serves is one library on one device, so that a crash names its culprit and costs only what that
    library held.
    """

    _IDLE_S = 10.0
    """A child that nobody used for so long is ended: on a small board its memory is needed."""
    _MOST_USES = 500
    """A library that leaks a little in each preparation is ended before it matters."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[str, list[tuple[Remote, int]]] = {}
        self._uses: dict[Remote, int] = {}
        self._timer: threading.Timer | None = None
        self._parents: object = None
        """In a process that was forked: what its parent has."""

    def borrow(self, name: str, device: Device | None = None) -> Remote:
        """An idle child of that name, or a new one; it is the caller's until `give_back`.

        Args:
            name: what it is used for.
            device: on which; one of another host has its child there.
        """
        far = Far.of(device) if device is not None else None
        name = f"{name} at {far.endpoint}" if far is not None else name
        with self._lock:
            waiting = self._idle.get(name)
            remote, uses = waiting.pop() if waiting else (Remote(name, far=far), 0)
            self._uses[remote] = uses + 1
            return remote

    def give_back(self, remote: Remote) -> None:
        """Keep a child for the next use, emptied of what it holds; one that is worn out is ended."""
        try:
            if remote.pid is not None:
                remote.call("empty", timeout_s=30.0)
        except EdgertError as error:
            _log.info("%s did not let go of its models and was ended: %s", remote.name, error)
            remote.close()
        with self._lock:
            uses = self._uses.pop(remote, self._MOST_USES)
            keep = remote.pid is not None and uses < self._MOST_USES
            if keep:
                self._idle.setdefault(remote.name, []).append((remote, uses))
            self._restart_timer()
        if not keep:
            remote.close()

    def forget(self) -> None:
        """In a process that was forked: the children are its parent's."""
        self._parents = self._idle, self._uses, self._timer  # not collected here, which would end what it holds
        self._lock, self._timer = threading.Lock(), None
        self._idle, self._uses = {}, {}

    def close(self) -> None:
        """End every idle child."""
        with self._lock:
            idle = [remote for waiting in self._idle.values() for remote, _ in waiting]
            self._idle.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        for remote in idle:
            remote.close()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._IDLE_S, self.close)
        self._timer.daemon = True
        self._timer.start()


REMOTES = Remotes()
"""Shared by everything in this process that tries targets."""
forked.forget(REMOTES.forget)


@dataclass
class Contestant:
    """A target prepared in its child, which can be timed, and prepared again after its child died of another's
    fault.
    """

    target: Target
    source: Source
    device: Device
    remote: Remote
    runnable: RemoteRunnable
    samples: Sequence[Mapping[str, Data]]
    cache: Path | None
    call_s: float
    """Its best time so far; sizes the visits."""
    prepare_limit_s: float
    failure: ChildError | EdgertError | None = None
    """What it died of, if it did."""

    def visit(self) -> float:
        """Median seconds of a few calls; infinity, with `failure` set, when it crashed, hung or failed."""
        try:
            self._revive()
            fewest = _FEWEST_CALLS if self.call_s < _SLOW_S else 1
            calls = min(_MOST_CALLS, max(fewest, math.ceil(_VISIT_S / max(self.call_s, 1e-7))))
            limit_s = RUN_LIMIT_S + 20 * calls * self.call_s
            at_most_s = max(0.3, 2 * self.call_s)
            if self.remote.far is None:
                times = self.runnable.time(sample_name(0), calls, at_most_s=at_most_s, timeout_s=limit_s)
            else:  # what a caller here sees, with the way there and back
                times = self._times_from_here(calls, at_most_s)
        except EdgertError as error:
            self.failure = error
            return math.inf
        self.call_s = min(self.call_s, *times)
        return statistics.median(times)

    def _times_from_here(self, calls: int, at_most_s: float) -> list[float]:
        times: list[float] = []
        while not times or (len(times) < calls and sum(times) < at_most_s):
            started_s = time.perf_counter()
            self.runnable.run(self.samples[0])
            times.append(time.perf_counter() - started_s)
        return times

    def renew(self) -> None:
        """Prepare the target anew in a new child, and run it once; the first of those that shared a child ends it.

        Raises:
            EdgertError: it does not prepare or run any more.
        """
        if self._there:
            self.remote.close()
        self._revive()
        self.runnable.time(sample_name(0), 1, at_most_s=0.0, timeout_s=RUN_LIMIT_S)

    @property
    def _there(self) -> bool:
        """Whether its child still lives, with the target in it."""
        return self.runnable.generation == self.remote.generation and self.remote.pid is not None

    def _revive(self) -> None:
        if self._there:
            return
        hold(self.remote, self.samples)
        self.runnable = self.remote.prepare(
            self.source, self.target, self.device, self.cache, timeout_s=self.prepare_limit_s
        )


def hold(remote: Remote, samples: Sequence[Mapping[str, Data]]) -> None:
    """Leave the samples with a child, named by `sample_name`; what it allocates from now on may not exceed what the box
    has available.
    """
    remote.call("ration")
    for index, sample in enumerate(samples):
        remote.hold(sample_name(index), sample)


def sample_name(index: int) -> str:
    """Under which a child holds a sample."""
    return f"sample {index}"

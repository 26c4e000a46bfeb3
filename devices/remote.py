"""A backend in a child process: the same `prepare -> run` as in this process, but it may crash, hang or be killed
without harm.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgert.devices.backend import Source
from edgert.devices.host import Host, source_to_json
from edgert.devices.hosts import Far
from edgert.errors import ChildDied, ChildError
from edgert.graph import Value
from edgert.machine import Device, Reach
from edgert.plan import value_from_json
from edgert.profile import Precision, Target
from edgert.tensor import Array, Data
from edgert.transport.child import Child
from edgert.transport.wire import Message

if TYPE_CHECKING:  # sockets, which most children need not
    from edgert.devices.far import FarChild

_log = logging.getLogger(__name__)
_SERVICE = "edgert.devices.host:Host"


class _Here:
    """In place of a child where the system has none of what `Child` needs (all but Linux): the host in this process."""

    alive = True
    pid = os.getpid()

    def __init__(self, service: str) -> None:
        module, _, kind = service.partition(":")
        self._host: Host = getattr(importlib.import_module(module), kind)()

    def call(
        self, method: str, body: Mapping[str, Any] | None, data: Mapping[str, Data] | None, *, timeout_s: float | None
    ) -> Message:
        """As `Child.call`, without its protection: no time limit holds here."""
        return self._host.handle(method, body or {}, data or {})

    def close(self) -> None:
        self._host.handle("empty", {}, {})


class Remote:
    """A child that hosts backends. Started when first needed, and again after it died."""

    def __init__(
        self, name: str, *, memory_limit_bytes: int | None = None, service: str = _SERVICE, far: Far | None = None
    ) -> None:
        """Args:
        name: for messages: what it is used for.
        memory_limit_bytes: as in `Child`.
        service: as in `Child`; a `Host`, or what extends it.
        far: where it is, when not on this box; then the other two do not count.
        """
        self.name = name
        self.far = far
        self._memory_limit_bytes, self._service = memory_limit_bytes, service
        self._child: Child | FarChild | _Here | None = None
        self.generation = 0
        """Counts the starts: what was prepared in an earlier generation is gone."""

    @property
    def pid(self) -> int | None:
        """Of the child, if it runs."""
        return self._child.pid if self._child is not None and self._child.alive else None

    def start(self) -> None:
        """Start the child now, if it does not run, so that its imports overlap with other work."""
        if self._child is None or not self._child.alive:
            self.close()
            if self.far is not None:
                from edgert.devices.far import FarChild

                self._child = FarChild(self.far, self.name)
            elif sys.platform == "linux":
                self._child = Child(self._service, name=self.name, memory_limit_bytes=self._memory_limit_bytes)
            else:
                self._child = _Here(self._service)
            self.generation += 1

    def call(
        self, method: str, body: Mapping[str, Any] | None = None, data: Mapping[str, Data] | None = None,
        *, timeout_s: float | None = None,
    ) -> Message:  # fmt: skip
        """As `Child.call`; a child that failed is gone, and the next call starts another."""
        self.start()
        assert self._child is not None
        try:
            return self._child.call(method, body, data, timeout_s=timeout_s)
        except ChildError:
            self.close()
            raise

    def reaches(self, backend: str, devices: Sequence[Device], *, timeout_s: float) -> tuple[str, tuple[Reach, ...]]:
        """Version of the backend's library and the devices that it drives.

        Raises:
            MissingPackage: the library is not usable.
            ChildError: it crashed or hung while it looked.
        """
        body, _ = self.call(
            "reaches", {"backend": backend, "devices": [asdict(item) for item in devices]}, timeout_s=timeout_s
        )
        return body["version"], tuple(Reach(**item) for item in body["reaches"])

    def signature(
        self, backend: str, path: Path, *, timeout_s: float
    ) -> tuple[tuple[Value, ...], tuple[Value, ...], Precision]:
        """As `Signs.signature`, there; also raises `ChildError`."""
        body, _ = self.call("signature", {"backend": backend, "path": str(path)}, timeout_s=timeout_s)
        inputs, outputs = (tuple(value_from_json(item) for item in body[side]) for side in ("inputs", "outputs"))
        return inputs, outputs, body["precision"]

    def prepare(
        self,
        source: Source,
        target: Target,
        device: Device,
        cache: Path | None = None,
        *,
        timeout_s: float | None = None,
    ) -> RemoteRunnable:
        """As `Backend.prepare`, there.

        Raises:
            PrepareRefused, MissingPackage: as there.
            ChildError: the library crashed, or hung beyond `timeout_s`; what was prepared before is lost with it.
        """
        body, _ = self.call(
            "prepare",
            {"source": source_to_json(source.on(target)), "target": str(target), "device": asdict(device),
             "cache": str(cache) if cache else ""},
            timeout_s=timeout_s,
        )  # fmt: skip
        return RemoteRunnable(self, target, body)

    def hold(self, sample: str, inputs: Mapping[str, Data]) -> None:
        """Leave inputs with the child, for `time` and `throughput`."""
        self.call("hold", {"sample": sample}, inputs)

    def transfer(self, device: Device, array: Array) -> float:
        """Seconds of an array's way to that device's child: timed, or, for a device in virtual time, declared."""
        started_s = time.perf_counter()
        body, _ = self.call("transfer", {"device": asdict(device)}, {"x": array})
        passed_s = time.perf_counter() - started_s
        return passed_s if body["seconds"] is None else float(body["seconds"])

    def fetch(self, device: Device, size_bytes: int) -> float:
        """As `transfer`, the other way: seconds of an array's way back from there."""
        started_s = time.perf_counter()
        body, _ = self.call("fetch", {"device": asdict(device), "bytes": size_bytes})
        passed_s = time.perf_counter() - started_s
        return passed_s if body["seconds"] is None else float(body["seconds"])

    def throughput(
        self, runnables: Sequence[RemoteRunnable], cores: Sequence[Sequence[int]], sample: str, seconds: float
    ) -> float:
        """Items per second of all runnables together, each in a thread with its own cores (none: not pinned)."""
        body, _ = self.call(
            "throughput",
            {"ids": [runnable.number for runnable in runnables], "cores": [list(own) for own in cores],
             "sample": sample, "seconds": seconds},
            timeout_s=10 * seconds + 60,
        )  # fmt: skip
        return float(body["items"]) / seconds

    def release(self, runnables: Sequence[RemoteRunnable]) -> None:
        """Free what was prepared; what an earlier generation held is gone already."""
        numbers = [runnable.number for runnable in runnables if runnable.generation == self.generation]
        if numbers and self.pid is not None:
            self.call("release", {"ids": numbers})

    def close(self) -> None:
        """End the child. Harmless when there is none."""
        if self._child is not None:
            self._child.close()
            self._child = None


class RemoteRunnable:
    """A segment prepared in a child; a `Runnable`."""

    def __init__(self, remote: Remote, target: Target, prepared: Mapping[str, Any]) -> None:
        self._remote = remote
        self.target = target
        self.generation = remote.generation
        self.number: int = prepared["id"]
        self.ran_on: Mapping[str, int] = prepared["ran_on"]
        self.prepare_s: float = prepared["prepare_s"]
        self.memory_bytes: int = prepared["memory_bytes"]
        self.timeout_s: float | None = None
        """Limit for one run, beyond which the child counts as hung and is killed; None for no limit."""

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """As `Runnable.run`; also raises `ChildError`."""
        self._alive("run")
        _, outputs = self._remote.call("run", {"id": self.number}, inputs, timeout_s=self.timeout_s)
        return outputs

    def run_held(self, sample: str, *, timeout_s: float | None = None) -> tuple[dict[str, Data], float]:
        """Outputs on inputs that `Remote.hold` left there, and the seconds that the run took."""
        self._alive("run")
        body, outputs = self._remote.call("run", {"id": self.number, "sample": sample}, timeout_s=timeout_s)
        return outputs, body["run_s"]

    def time(self, sample: str, calls: int, *, at_most_s: float, timeout_s: float | None = None) -> list[float]:
        """Seconds of each of up to `calls` calls, timed in the child itself; at least one, no new one past
        `at_most_s`.
        """
        self._alive("time")
        body, _ = self._remote.call(
            "time",
            {"id": self.number, "sample": sample, "calls": calls, "at_most_s": at_most_s},
            timeout_s=timeout_s,
        )
        return [float(item) for item in body["seconds"]]

    def close(self) -> None:
        self._remote.release([self])

    def _alive(self, method: str) -> None:
        if self.generation != self._remote.generation or self._remote.pid is None:
            raise ChildDied(
                f"{self._remote.name}: the process that held {self.target} is gone ({method}).",
                "Prepare it again.", signal=None, exit_code=None,
            )  # fmt: skip

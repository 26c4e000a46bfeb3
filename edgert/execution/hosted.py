"""A plan of several segments in a child process: prepared, run and timed there as a `Pipeline` would run it here.

CPU segments run inside the child, as they would inside the application; those of other devices in children of its own.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgert.devices import backend
from edgert.devices.backend import Runnable, Source
from edgert.devices.host import Host, pin_thread, resident_bytes, source_from_json, source_to_json
from edgert.devices.hosts import Far
from edgert.devices.remote import Remote, RemoteRunnable
from edgert.errors import EdgertError
from edgert.execution.segments import Relay, Step
from edgert.execution.virtual import VirtualChain, all_in_virtual_time
from edgert.machine import Device, device_from_json
from edgert.profile import Target
from edgert.tensor import Data
from edgert.transport.wire import Message

SERVICE = "edgert.execution.hosted:SegmentsHost"


@dataclass(frozen=True, slots=True)
class Prepare:
    """One segment to prepare."""

    source: Source
    target: Target
    device: Device
    instances: tuple[tuple[int, ...], ...] = ((),)
    """Cores of each instance; a request that finds all at work waits for one."""


def prepare_segments(
    remote: Remote, segments: Sequence[Prepare], outputs: Sequence[str], cache: Path | None, *, timeout_s: float
) -> RemoteRunnable:
    """The segments as one runnable in a child whose service is `SERVICE`.

    Args:
        remote: made with `service=SERVICE`.
        segments: in an order in which they can run.
        outputs: the model's, by name.
        cache: as in `Backend.prepare`.
        timeout_s: for all of them together.

    Raises:
        PrepareRefused, MissingPackage, ChildError: as `Remote.prepare`.
    """
    parts = [
        {"source": source_to_json(part.source), "target": str(part.target), "device": asdict(part.device),
         "instances": [list(cores) for cores in part.instances]}
        for part in segments
    ]  # fmt: skip
    body = {"segments": parts, "outputs": list(outputs), "cache": str(cache) if cache else ""}
    answer, _ = remote.call("prepare_segments", body, timeout_s=timeout_s)
    return RemoteRunnable(remote, segments[0].target, answer)


class SegmentsHost(Host):
    """The child's end."""

    def handle(self, method: str, body: Mapping[str, Any], data: Mapping[str, Data]) -> Message:
        if method != "prepare_segments":
            return super().handle(method, body, data)
        before_bytes, started_s = resident_bytes(), time.perf_counter()
        chain = _chain(body)
        number, self._next = self._next, self._next + 1
        self._runnables[number] = chain
        return {
            "id": number,
            "ran_on": dict(chain.ran_on),
            "prepare_s": time.perf_counter() - started_s,
            "memory_bytes": max(0, resident_bytes() - before_bytes),
        }, {}

    def _throughput(self, numbers: Sequence[int], cores: Sequence[Sequence[int]], sample: str, seconds: float) -> float:
        first = self._runnables[numbers[0]]
        if isinstance(first, VirtualChain):
            return first.items(self._samples[sample], seconds)
        return super()._throughput(numbers, cores, sample, seconds)


def _chain(body: Mapping[str, Any]) -> _Chain | VirtualChain:
    """What is asked for, in the time in which its devices live."""
    devices = [device_from_json(item["device"]) for item in body["segments"]]
    if not all_in_virtual_time(devices):
        return _Chain(body)
    sources = [source_from_json(item["source"]) for item in body["segments"]]
    targets = [Target.parse(item["target"]) for item in body["segments"]]
    cache = Path(body["cache"]) if body["cache"] else None
    return VirtualChain(list(zip(sources, targets, devices, strict=True)), body["outputs"], cache)


class _Lent:
    """Instances of one segment, each lent to one request at a time."""

    def __init__(self, instances: Sequence[Runnable]) -> None:
        self._free: queue.SimpleQueue[Runnable] = queue.SimpleQueue()
        for instance in instances:
            self._free.put(instance)

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        runnable = self._free.get()
        try:
            return runnable.run(inputs)
        finally:
            self._free.put(runnable)


class _Chain:
    """A `Runnable` of several. Several requests may be in it at once: each segment runs one an instance."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._remotes: dict[str, Remote] = {}
        self._parts: list[Runnable] = []
        cache = Path(body["cache"]) if body["cache"] else None
        steps = []
        try:
            for item in body["segments"]:
                source, target = source_from_json(item["source"]), Target.parse(item["target"])
                device, lent = device_from_json(item["device"]), []
                for cores in item["instances"]:
                    lent.append(self._pinned(cores, source, target, device, cache))
                    self._parts.append(lent[-1])
                names = [tuple(value.name for value in values) for values in (source.inputs, source.outputs)]
                steps.append(Step(target, names[0], names[1], _Lent(lent).run))
        except BaseException:
            self.close()
            raise
        self._relay: Relay | None = Relay(steps, body["outputs"])
        counts: Counter[str] = Counter()
        for part in self._parts:
            counts.update(part.ran_on)
        self.ran_on: Mapping[str, int] = counts

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        assert self._relay is not None  # it is None only while this is made
        return self._relay.run(inputs)

    def close(self) -> None:
        for part in self._parts:
            with suppress(EdgertError):  # it is gone, which is what was wanted
                part.close()
        for remote in self._remotes.values():
            remote.close()
        self._parts, self._remotes = [], {}

    def _pinned(
        self, cores: Sequence[int], source: Source, target: Target, device: Device, cache: Path | None
    ) -> Runnable:
        """Prepared in a thread on those cores: a library's own threads inherit where they were created."""

        def work() -> Runnable:
            pin_thread(cores)
            return self._prepared(source, target, device, cache)

        if not cores:
            return work()
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(work).result()

    def _prepared(self, source: Source, target: Target, device: Device, cache: Path | None) -> Runnable:
        if target.device.startswith("cpu"):
            return backend(target.backend).prepare(source, target, device, cache)
        name = f"{target.backend}@{target.device}"
        if name not in self._remotes:
            self._remotes[name] = Remote(f"executor of {name}", far=Far.of(device))
        return self._remotes[name].prepare(source, target, device, cache)

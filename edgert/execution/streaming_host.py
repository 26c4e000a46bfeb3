"""A plan's segments taking turns in a child process, as `Streamed` runs them here; and what the child holds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from edgert.devices import backend, memory
from edgert.devices.backend import Runnable
from edgert.devices.host import Host, source_from_json, source_to_json
from edgert.devices.memory import Resident
from edgert.devices.remote import Remote, RemoteRunnable
from edgert.execution.hosted import Prepare
from edgert.execution.streaming import Piece, Streamed, extents_of
from edgert.machine import device_from_json
from edgert.profile import Target
from edgert.tensor import Data
from edgert.transport.wire import Message

SERVICE = "edgert.execution.streaming_host:StreamingHost"


def prepare_streamed(
    remote: Remote, segments: Sequence[Prepare], outputs: Sequence[str], held: Sequence[Sequence[int]],
    *, timeout_s: float,
) -> RemoteRunnable:  # fmt: skip
    """Segments that take turns as one runnable in a child whose service is `SERVICE`; each is loaded when it runs.

    Args:
        remote: made with `service=SERVICE`.
        segments: all on one CPU device, in an order in which they can run.
        outputs: the model's, by name.
        held: as in `Residency.held`.
        timeout_s: for loading the first.

    Raises:
        TargetError, ChildError: the first segment cannot be loaded.
    """
    parts = [
        {"source": source_to_json(part.source), "target": str(part.target), "device": asdict(part.device)}
        for part in segments
    ]
    body = {"segments": parts, "outputs": list(outputs), "held": [list(own) for own in held]}
    answer, _ = remote.call("prepare_streamed", body, timeout_s=timeout_s)
    return RemoteRunnable(remote, segments[0].target, answer)


def resident_of(remote: Remote, *, reset: bool = False) -> Resident:
    """What a child whose service is `SERVICE` holds, and held at most since the last `reset`."""
    body, _ = remote.call("resident", {"reset": reset})
    return Resident(body["now_bytes"], body["peak_bytes"])


class StreamingHost(Host):
    """The child's end."""

    def handle(self, method: str, body: Mapping[str, Any], data: Mapping[str, Data]) -> Message:
        if method == "resident":
            found = memory.resident()
            if body["reset"]:
                memory.reset_peak()
            return asdict(found), {}
        if method != "prepare_streamed":
            return super().handle(method, body, data)
        started_s = time.perf_counter()
        made = _Chain(body)
        number, self._next = self._next, self._next + 1
        self._runnables[number] = made
        return {
            "id": number,
            "ran_on": dict(made.ran_on),
            "prepare_s": time.perf_counter() - started_s,
            "memory_bytes": 0,
        }, {}


class _Chain:
    """A `Runnable` of segments that take turns."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.ran_on: Mapping[str, int] = {}
        self._counts: dict[int, Mapping[str, int]] = {}
        pieces = []
        for index, item in enumerate(body["segments"]):
            source, target = source_from_json(item["source"]), Target.parse(item["target"])
            device = device_from_json(item["device"])
            names = [tuple(value.name for value in values) for values in (source.inputs, source.outputs)]
            load = partial(self._load, index, partial(backend(target.backend).prepare, source, target, device))
            pieces.append(Piece(target, names[0], names[1], extents_of(source.path), load))
        self._streamed = Streamed(pieces, body["outputs"], body["held"])
        try:
            self._streamed.begin()
        except BaseException:
            self._streamed.close()
            raise

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        return self._streamed.run(inputs)

    def close(self) -> None:
        self._streamed.close()

    def _load(self, index: int, prepare: partial[Runnable]) -> Runnable:
        loaded = prepare()
        self._counts[index] = loaded.ran_on
        counts: Counter[str] = Counter()
        for each in self._counts.values():
            counts.update(each)
        self.ran_on = counts
        return loaded

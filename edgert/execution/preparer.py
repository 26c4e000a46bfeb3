"""The compiler's thread of an executor: prepares one segment after another, so that one that hangs holds up no run."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np

from edgert import errors
from edgert.devices import backend
from edgert.devices.backend import Runnable, RunsInto, Source
from edgert.devices.host import resident_bytes, source_from_json
from edgert.errors import EdgertError, PrepareRefused
from edgert.machine import Device
from edgert.profile import Target
from edgert.transport.messages import Carried, Message, Prepare, Prepared, Refused


@dataclass(slots=True)
class PreparedSegment:
    """A segment that an executor holds."""

    runnable: Runnable
    source: Source
    target: Target
    model: str
    """Whose share of the device it is charged to."""
    runs_into: bool = False
    """Whether it writes its outputs where it is told."""
    runs: int = 0
    mean_s: float = 0.0
    """Of a run; recent ones count most."""
    owner: str = ""
    """The caller that ordered it, by where it is answered."""


class Preparer:
    """`order` and `results` belong to the executor's loop; `run` to the compiler's thread."""

    def __init__(self, device: Device, wake: Callable[[], None]) -> None:
        """Args:
        device: to prepare for.
        wake: tells the loop that there are results.
        """
        self._device, self._wake = device, wake
        self._orders: queue.SimpleQueue[tuple[Prepare, str] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[str, Message, PreparedSegment | None]] = queue.SimpleQueue()
        self._folder: TemporaryDirectory[str] | None = None
        self._unpacking = threading.Lock()
        self.under_way = 0
        """Orders whose result was not fetched yet."""

    def order(self, order: Prepare, reply: str) -> None:
        """Prepare a segment; `reply` is where its result goes."""
        self.under_way += 1
        self._orders.put((order, reply))

    def results(self) -> list[tuple[str, Message, PreparedSegment | None]]:
        """What ended: where to say so, `Prepared` or `Refused`, and the segment."""
        ended = []
        while not self._results.empty():
            ended.append(self._results.get())
            self.under_way -= 1
        return ended

    def close(self) -> None:
        """Let the thread end, and remove files that came from other hosts."""
        self._orders.put(None)
        if self._folder is not None:
            self._folder.cleanup()

    def run(self) -> None:
        """One order after another, until closed."""
        while (order := self._orders.get()) is not None:
            message, reply = order
            try:
                segment, facts = self._prepared(message)
            except EdgertError as error:
                self._results.put((reply, Refused(message.request, message.segment, errors.to_json(error)), None))
            except Exception as error:  # noqa: BLE001 - a vendor's library may raise anything, and the caller must learn of it
                refusal = PrepareRefused(f"{message.segment}: {type(error).__name__}: {str(error)[:500]}.", target="")
                self._results.put((reply, Refused(message.request, message.segment, errors.to_json(refusal)), None))
            else:
                self._results.put((reply, Prepared(message.request, message.segment, facts), segment))
            self._wake()

    def unpacked(self, files: Mapping[str, Carried], name: str) -> Path:
        """Model files of a caller on another host, in a folder of this process. Thread-safe.

        Raises:
            PrepareRefused: a name leads out of the folder, or what came is no file.
        """
        with self._unpacking:
            if self._folder is None:
                self._folder = TemporaryDirectory(prefix="edgert-")
        folder = Path(mkdtemp(dir=self._folder.name))
        for own, content in files.items():
            place = PurePosixPath(own)
            if place.is_absolute() or ".." in place.parts or not place.parts or not isinstance(content, np.ndarray):
                raise PrepareRefused(f"{own!r} is no name of a file.", "Use the same edgert on both ends.", target="")
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(content.tobytes())
        return folder / name

    def _prepared(self, order: Prepare) -> tuple[PreparedSegment, dict[str, Any]]:
        facts = order.facts
        # What the caller calls this device is its own affair: another host's npu:0 has a longer name there.
        target = replace(Target.parse(facts["target"]), device=self._device.id)
        source = source_from_json(facts["source"])
        if order.files:
            source = replace(source, path=self.unpacked(order.files, source.path.name))
        cache = Path(facts["cache"]) if facts["cache"] and not order.files else None
        before_bytes, started_s = resident_bytes(), time.perf_counter()
        runnable = backend(target.backend).prepare(source, target, self._device, cache)
        return PreparedSegment(runnable, source, target, str(facts["model"]), isinstance(runnable, RunsInto)), {
            "ran_on": dict(runnable.ran_on),
            "prepare_s": time.perf_counter() - started_s,
            "memory_bytes": max(0, resident_bytes() - before_bytes),
        }

"""The child's end of a backend in a process of its own: prepares, runs and times segments on command.

`edgert.devices.remote` is the parent's end. The same service probes, measures, compiles and executes.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgert.devices import backend as load_backend
from edgert.devices import quota
from edgert.devices.backend import Runnable, Signs, Source, Virtual
from edgert.devices.words import in_virtual_time
from edgert.errors import OptionError, TargetError
from edgert.graph import Value
from edgert.machine import Device, device_from_json
from edgert.plan import value_from_json
from edgert.profile import Target
from edgert.tensor import Data
from edgert.transport.wire import Message


class Host:
    """Holds prepared runnables by number, and inputs by name, until told to release them."""

    def __init__(self) -> None:
        self._runnables: dict[int, Runnable] = {}
        self._next = 0
        self._samples: dict[str, dict[str, Data]] = {}
        self._rationed = False

    def handle(self, method: str, body: Mapping[str, Any], data: Mapping[str, Data]) -> Message:
        """Do one thing.

        Raises:
            NotEnoughMemory: a library could not allocate below the ceiling that `ration` set.
            EdgertError: whatever else went wrong.
        """
        try:
            return self._do(method, body, data)
        except TargetError as error:
            if self._rationed and quota.is_hit(error.message):
                raise quota.shortage(error.message) from error
            raise

    def _do(  # noqa: PLR0911, PLR0912 - one return a command: the table reads best whole
        self, method: str, body: Mapping[str, Any], data: Mapping[str, Data]
    ) -> Message:
        match method:
            case "ration":
                self._rationed = True
                quota.begin(body.get("bytes"))
                return {}, {}
            case "reaches":
                return self._reaches(body["backend"], [device_from_json(item) for item in body["devices"]]), {}
            case "signature":
                return self._signature(body["backend"], Path(body["path"])), {}
            case "prepare":
                return self._prepare(body), {}
            case "hold":
                self._samples[body["sample"]] = dict(data)
                return {}, {}
            case "run":
                return self._run(body["id"], self._samples[body["sample"]] if "sample" in body else data)
            case "time":
                return {"seconds": self._time(body["id"], body["sample"], body["calls"], body["at_most_s"])}, {}
            case "throughput":
                return {"items": self._throughput(body["ids"], body["cores"], body["sample"], body["seconds"])}, {}
            case "transfer":
                return {"seconds": _declared_transfer_s(device_from_json(body["device"]), data)}, {}
            case "fetch":
                made: dict[str, Data] = {"x": np.zeros(body["bytes"], np.uint8)}
                return {"seconds": _declared_transfer_s(device_from_json(body["device"]), made)}, made
            case "release":
                self._release(body["ids"])
                return {}, {}
            case "empty":
                self._samples.clear()
                self._release(list(self._runnables))
                if self._rationed:
                    quota.end()
                    self._rationed = False
                return {}, {}
        raise OptionError(f"host: there is no method {method!r}.")

    def _reaches(self, name: str, devices: Sequence[Device]) -> dict[str, Any]:
        library = load_backend(name)
        reaches = library.reaches(devices)
        fields = ("backend", "device", "variant", "health", "detail")
        return {
            "version": library.version(),
            "reaches": [{field: getattr(reach, field) for field in fields} for reach in reaches],
        }

    def _signature(self, name: str, path: Path) -> dict[str, Any]:
        library = load_backend(name)
        if not isinstance(library, Signs):
            raise OptionError(f"backend {name!r} does not tell a model's signature.")
        inputs, outputs, precision = library.signature(path)
        return {
            "inputs": [asdict(value) for value in inputs],
            "outputs": [asdict(value) for value in outputs],
            "precision": precision,
        }

    def _prepare(self, body: Mapping[str, Any]) -> dict[str, Any]:
        target = Target.parse(body["target"])
        library = load_backend(target.backend)
        cache = Path(body["cache"]) if body["cache"] else None
        before_bytes = resident_bytes()
        started_s = time.perf_counter()
        runnable = library.prepare(source_from_json(body["source"]), target, device_from_json(body["device"]), cache)
        prepare_s = time.perf_counter() - started_s
        number, self._next = self._next, self._next + 1
        self._runnables[number] = runnable
        return {
            "id": number,
            "ran_on": dict(runnable.ran_on),
            "prepare_s": prepare_s,
            "memory_bytes": max(0, resident_bytes() - before_bytes),
        }

    def _run(self, number: int, inputs: Mapping[str, Data]) -> Message:
        runnable = self._runnables[number]
        now_s = _now_s(runnable)
        started_s = now_s()
        outputs = runnable.run(inputs)
        return {"run_s": now_s() - started_s}, outputs

    def _time(self, number: int, sample: str, calls: int, at_most_s: float) -> list[float]:
        """Seconds of up to `calls` calls one after another; stops early, after at least one, past `at_most_s`."""
        runnable, inputs = self._runnables[number], self._samples[sample]
        run: Callable[[Mapping[str, Data]], object] = (
            runnable.pass_run if isinstance(runnable, Virtual) else runnable.run
        )
        now_s = _now_s(runnable)
        gc.collect()
        gc.disable()  # a collection in the middle of a call would be charged to the target
        try:
            times: list[float] = []
            total_s = 0.0
            for _ in range(calls):
                started_s = now_s()
                run(inputs)
                times.append(now_s() - started_s)
                total_s += times[-1]
                if total_s > at_most_s:
                    break
            return times
        finally:
            gc.enable()

    def _throughput(self, numbers: Sequence[int], cores: Sequence[Sequence[int]], sample: str, seconds: float) -> float:
        """Items that all instances finish together in `seconds`, each in a thread with cores of its own.

        In virtual time a device runs one at a time.
        """
        first = self._runnables[numbers[0]]
        if isinstance(first, Virtual):
            return _virtual_items(first, self._samples[sample], seconds)
        stop_s = time.perf_counter() + seconds
        counts = [0] * len(numbers)

        def work(index: int) -> None:
            pin_thread(cores[index])
            run, inputs = self._runnables[numbers[index]].run, self._samples[sample]
            while time.perf_counter() < stop_s:
                run(inputs)
                counts[index] += 1

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(numbers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    def _release(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            runnable = self._runnables.pop(number, None)
            if runnable is not None:
                runnable.close()
        gc.collect()


def _now_s(runnable: Runnable) -> Callable[[], float]:
    """The clock that its runs are timed by."""
    return runnable.clock.now_s if isinstance(runnable, Virtual) else time.perf_counter


def _virtual_items(runnable: Virtual, inputs: Mapping[str, Data], seconds: float) -> float:
    """Items in `seconds`, told from a whole number of runs that fills them."""
    started_s, count = runnable.clock.now_s(), 0
    while runnable.clock.now_s() < started_s + seconds:
        runnable.pass_run(inputs)
        count += 1
    return count * seconds / (runnable.clock.now_s() - started_s)


def _declared_transfer_s(device: Device, data: Mapping[str, Data]) -> float | None:
    """What taking these arrays in took, where the device is on paper and in virtual time; None where whoever sent them
    can tell.
    """
    if not in_virtual_time(device):
        return None
    from edgert.devices.simulated import size_bytes  # its module loads more than most children need
    from edgert.devices.simulation import transfer_s

    return transfer_s(device, sum(map(size_bytes, data.values())))


def pin_thread(cores: Sequence[int]) -> None:
    """Keep this thread on those logical CPUs; no cores, or a system that cannot: leave it as it is."""
    if cores and sys.platform == "linux":
        os.sched_setaffinity(0, cores)


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the kernel does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def source_to_json(source: Source) -> dict[str, Any]:
    """`source_from_json` reads it back, but for an artefact: what crosses is for one target (`Source.on`)."""
    return {**asdict(replace(source, artefact=None)), "path": str(source.path)}


def source_from_json(data: Mapping[str, Any]) -> Source:
    """The source that `source_to_json` described."""

    def values(items: Sequence[Mapping[str, Any]]) -> tuple[Value, ...]:
        return tuple(value_from_json(item) for item in items)

    return Source(
        Path(data["path"]), data["format"], values(data["inputs"]), values(data["outputs"]), data["precision"]
    )

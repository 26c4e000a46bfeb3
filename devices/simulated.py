"""Devices on paper: declared speeds, true numerics. For planning for hardware that is not there, and for tests.

A simulated device has `driver="simulated"` and declares what it is in `attributes` (texts; numbers in seconds, bytes
and operations, where a multiply-add is two; what is left out costs nothing):

    launch_s, kernel_s          every run of a segment; every kernel of it
    ops_per_s                   at float32; f16_ops_per_s, i8_ops_per_s at those precisions (ops_per_s)
    depthwise                   share of the rate that convolutions of one channel reach               (1)
    bytes_per_s                 between the device and memory; sram_bytes, store_bytes: values and weights
                                up to that size stay on the chip
    io_bytes_per_s              for a segment's inputs and outputs, besides
    link_s, link_bytes_per_s    of a value's way between the host's memory and the device
    dram_bytes_per_s            of the memory that all devices share
    jitter, seed                spread of a run's time, and where its random numbers start
    ops                         the ops that it takes, separated by blanks                             (all)
    precisions                  'f32', 'f16', 'i8', separated by blanks                    (the model's own)
    time                        'real' waits; 'virtual' does not, and its times are told by its own clock (real)
    numerics                    backend that computes the answers on the CPU (onnxruntime for ONNX, litert for TFLite)

What a run takes is said by `edgert.devices.simulation`. In real time a run waits for what the true computation left of
that; in virtual time nobody waits, and a slow host can stand for a fast NPU. At 'f16' the answers are computed in
float32 from inputs rounded to float16, and rounded again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgert import devices
from edgert.devices.backend import Runnable, Source
from edgert.devices.simulation import Load, Paper, load_of
from edgert.devices.words import SIMULATED, in_virtual_time, refused
from edgert.errors import OptionError, UnknownTarget
from edgert.formats import open_model
from edgert.graph import Graph
from edgert.machine import Device, Reach
from edgert.profile import PRECISIONS, Precision, Target
from edgert.tensor import Data
from edgert.transport.clock import Clock, RealClock, VirtualClock

_NUMERICS = {"onnx": "onnxruntime", "tflite": "litert"}
_MOST_NAMED = 5


class Backend:
    """Simulated devices; see `edgert.devices.backend.Backend`."""

    name = "simulated"
    reentrant = False

    def __init__(self, clock: Clock | None = None) -> None:
        """Args:
        clock: for devices in real time; the machine's own when None.
        """
        self._clock = RealClock() if clock is None else clock
        self._virtual = VirtualClock()

    def version(self) -> str:
        return version("edgert")

    def reaches(self, devices: Sequence[Device]) -> tuple[Reach, ...]:
        return tuple(Reach(self.name, device.id) for device in devices if device.driver == SIMULATED)

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        if variant:
            raise UnknownTarget(f"simulated has no variant {variant!r}.", "Leave it out.")
        if device.driver != SIMULATED:
            return ()
        return tuple(Target(self.name, device.id, each) for each in _precisions(device, source.precision))

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        if target.precision not in _precisions(device, source.precision):
            known = device.attributes.get("precisions") or "its own precision only"
            raise refused(target, f"{device.name} computes a model of {source.precision} at {known}")
        graph = open_model(source.path).graph
        _check_ops(graph, target, device)
        Paper.of(device, target.precision)  # what makes no sense is said before anything is loaded
        backend = devices.backend(device.attributes.get("numerics", _NUMERICS[source.format]))
        host = Device("cpu:0", "cpu", "host of a simulation", 0)
        inner = backend.prepare(source, Target(backend.name, host.id, source.precision, 1), host, cache)
        if in_virtual_time(device):
            return VirtualPrepared(inner, graph, source, (target, device), self._virtual)
        return Prepared(inner, graph, source, (target, device), self._clock)


class Prepared:
    """A model on a simulated device: another backend's answers, at the declared pace."""

    def __init__(self, inner: Runnable, graph: Graph, source: Source, on: tuple[Target, Device], clock: Clock) -> None:
        target, device = on
        self.ran_on: Mapping[str, int] = {device.id: sum(inner.ran_on.values())}
        self.clock = clock
        self._inner = inner
        self._half = target.precision == "f16"
        self._paper = Paper.of(device, target.precision)
        self._chance = random.Random(f"{device.attributes.get('seed', '')} {device.id} {source.path.name}")
        self._load = load_of(graph, self._paper)
        self._declared_bytes = sum(value.size_bytes() or 0 for value in graph.inputs)

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        started_s = self.clock.now_s()
        outputs = self.answer(inputs)
        self.clock.wait(self.load(inputs).seconds - (self.clock.now_s() - started_s))
        return outputs

    def answer(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """The numbers, in no declared time."""
        if not self._half:
            return self._inner.run(inputs)
        outputs = self._inner.run({name: _rounded(value) for name, value in inputs.items()})
        return {name: _rounded(value) for name, value in outputs.items()}

    def load(self, inputs: Mapping[str, Data]) -> Load:
        """What one more run takes, its launch included. Free dimensions: in proportion to the size of the inputs."""
        factor = 1.0
        if self._declared_bytes:
            factor = max(1.0, sum(map(size_bytes, inputs.values())) / self._declared_bytes)
        load = self._load.times(factor)
        return self._paper.jittered(Load(load.seconds + self._paper.launch_s, load.memory_s, load.bytes), self._chance)

    def close(self) -> None:
        self._inner.close()


class VirtualPrepared(Prepared):
    """The same in virtual time; see `edgert.devices.backend.Virtual`."""

    def pass_run(self, inputs: Mapping[str, Data]) -> None:
        self.clock.wait(self.load(inputs).seconds)


def _precisions(device: Device, own: Precision) -> list[Precision]:
    """At which precisions it computes a model: the model's own, and f16 for f32 where it says so."""
    declared = device.attributes.get("precisions")
    if declared is None:
        return [own]
    odd = set(declared.split()) - set(PRECISIONS)
    if odd:
        raise OptionError(
            f"simulated device {device.id} declares precision {min(odd)!r}.", f"Use some of {', '.join(PRECISIONS)}."
        )
    wanted: tuple[Precision, ...] = (own, "f16") if own == "f32" else (own,)
    return [each for each in wanted if each in declared.split()]


def _check_ops(graph: Graph, target: Target, device: Device) -> None:
    """Refuse what the device does not take, by name."""
    declared = device.attributes.get("ops")
    if declared is None:
        return
    known = frozenset(declared.split())
    odd = [node for node in graph.nodes if node.op not in known]
    if odd:
        names = ", ".join(f"{node.op} ({node.name})" for node in odd[:_MOST_NAMED])
        more = f" and {len(odd) - _MOST_NAMED} more" if len(odd) > _MOST_NAMED else ""
        raise refused(target, f"{device.name} has no {names}{more}")


def _rounded(value: Data) -> Data:
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return value.astype(np.float16).astype(np.float32)
    return value


def size_bytes(data: Data) -> int:
    """Of an array, or of all that a sequence or map holds."""
    if isinstance(data, np.ndarray):
        return data.nbytes
    if isinstance(data, Mapping):
        return sum(map(size_bytes, data.values()))
    return sum(map(size_bytes, data)) if isinstance(data, list) else 8

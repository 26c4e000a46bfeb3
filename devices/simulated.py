"""Devices on paper: declared speeds, true numerics. For planning for hardware that is not there, and for tests.

A simulated device has `driver="simulated"` and declares its speed in `attributes`:

    launch_s       seconds that every run costs                                          (0)
    ops_per_s      operations (multiply-adds x 2) a second                               (no limit)
    i8_ops_per_s   the same for models of quantised arithmetic                           (ops_per_s)
    bytes_per_s    of weights, inputs and outputs, each moved once a run                  (no limit)
    numerics       backend that computes the answers on the CPU    (onnxruntime for ONNX, litert for TFLite)

A run takes launch_s + operations / ops_per_s + bytes / bytes_per_s on the backend's `Clock`: in real time it waits
for what the true computation left of that, in virtual time nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgert import devices
from edgert.devices.backend import Runnable, Source
from edgert.devices.words import SIMULATED, refused
from edgert.errors import OptionError, UnknownTarget
from edgert.formats import open_model
from edgert.graph import Graph, Node
from edgert.machine import Device, Reach
from edgert.profile import Target
from edgert.tensor import Data, Shape
from edgert.transport.clock import Clock, RealClock

_NUMERICS = {"onnx": "onnxruntime", "tflite": "litert"}
_CHANNELS_LAST = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D")
_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "FULLY_CONNECTED", "BATCH_MATMUL")


class Backend:
    """Simulated devices; see `edgert.devices.backend.Backend`."""

    name = "simulated"
    reentrant = False

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = RealClock() if clock is None else clock

    def version(self) -> str:
        return version("edgert")

    def reaches(self, devices: Sequence[Device]) -> tuple[Reach, ...]:
        return tuple(Reach(self.name, device.id) for device in devices if device.driver == SIMULATED)

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        if variant:
            raise UnknownTarget(f"simulated has no variant {variant!r}.", "Leave it out.")
        return (Target(self.name, device.id, source.precision),) if device.driver == SIMULATED else ()

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        if target.precision != source.precision:
            raise refused(target, f"a simulated device computes at the model's own precision, {source.precision}")
        speed = Speed.of(device, quantised=source.precision == "i8")
        backend = devices.backend(device.attributes.get("numerics", _NUMERICS[source.format]))
        host = Device("cpu:0", "cpu", "host of a simulation", 0)
        inner = backend.prepare(source, Target(backend.name, host.id, source.precision, 1), host, cache)
        graph = open_model(source.path).graph
        return Prepared(inner, speed.fixed_s(graph), speed, device, self._clock)


@dataclass(frozen=True, slots=True)
class Speed:
    """What a simulated device declares."""

    launch_s: float
    ops_per_s: float
    bytes_per_s: float

    @classmethod
    def of(cls, device: Device, quantised: bool = False) -> Speed:
        """The declared speed.

        Raises:
            OptionError: a number is malformed or not positive.
        """
        ops = _number(device, "ops_per_s", math.inf)
        if quantised:
            ops = _number(device, "i8_ops_per_s", ops)
        return cls(_number(device, "launch_s", 0.0), ops, _number(device, "bytes_per_s", math.inf))

    def fixed_s(self, graph: Graph) -> float:
        """Declared time of a run, but for moving its inputs and outputs."""
        return self.launch_s + operations(graph) / self.ops_per_s + graph.weight_bytes / self.bytes_per_s


class Prepared:
    """A model on a simulated device: another backend's answers, at the declared pace."""

    def __init__(self, inner: Runnable, fixed_s: float, speed: Speed, device: Device, clock: Clock) -> None:
        self.ran_on: Mapping[str, int] = {device.id: sum(inner.ran_on.values())}
        self._inner = inner
        self._fixed_s = fixed_s
        self._speed = speed
        self._clock = clock

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        started_s = self._clock.now_s()
        outputs = self._inner.run(inputs)
        moved = sum(map(_size_bytes, (*inputs.values(), *outputs.values())))
        declared_s = self._fixed_s + moved / self._speed.bytes_per_s
        self._clock.wait(declared_s - (self._clock.now_s() - started_s))
        return outputs

    def close(self) -> None:
        self._inner.close()


def operations(graph: Graph) -> float:
    """Operations of one run: 2 for each multiply-add of convolutions and matrix products, 1 for each other element
    written. Free dimensions count as 1, and so do unknown shapes.
    """
    return float(sum(_operations(node, graph) for node in graph.nodes))


def _operations(node: Node, graph: Graph) -> float:
    inner = sum(operations(body) for body in node.subgraphs)
    written = sum(_elements(_shape(graph, name)) for name in node.writes)
    operands = [_shape(graph, name) for name in node.inputs if name]
    if node.op in _PRODUCTS and operands and operands[0]:
        return inner + 2.0 * written * _elements(operands[0][-1:])
    if node.op in ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose", *_CHANNELS_LAST):
        kernel = max((shape for shape in operands[1:] if len(shape) > 2), key=_elements, default=())
        channels = kernel[-1:] if node.op == "DEPTHWISE_CONV_2D" else kernel[:1]
        return inner + 2.0 * written * _elements(kernel) / _elements(channels)
    return inner + written


def _shape(graph: Graph, name: str) -> Shape:
    value = graph.values.get(name)
    return value.shape or () if value is not None else ()


def _elements(shape: Shape) -> int:
    return math.prod(size if isinstance(size, int) else 1 for size in shape)


def _size_bytes(data: Data) -> int:
    if isinstance(data, np.ndarray):
        return data.nbytes
    if isinstance(data, Mapping):
        return sum(map(_size_bytes, data.values()))
    return sum(map(_size_bytes, data)) if isinstance(data, list) else 8


def _number(device: Device, name: str, default: float) -> float:
    text = device.attributes.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if number > 0 or (number == 0 and name == "launch_s"):
        return number
    raise OptionError(
        f"simulated device {device.id} declares {name} = {text!r}.", "Give a positive number in its attributes."
    )

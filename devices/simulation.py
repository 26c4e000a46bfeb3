"""What work takes on processors that exist on paper: kernels and their fusion, memory, links, jitter.

- A kernel takes max(operations / rate, bytes / bandwidth) + `kernel_s`: the roofline (Williams, Waterman and
  Patterson, Communications of the ACM 52, 2009).
- Element-wise nodes are fused into the kernel of what they read, if nobody else reads that.
- A value between two kernels of one segment that fits into the chip's memory never goes to the machine's.
- A value's way over a link takes `link_s` + bytes / `link_bytes_per_s`.
- A run's time is multiplied by exp(N(0, `jitter`)), seeded.
- Devices that work at once share `dram_bytes_per_s` (`edgert.devices.contention`; as in HaX-CoNN, Dagli and
  Belviranli, PPoPP 2024).

So the cost of a segment is less than the sum of its blocks' costs, and that of a plan is not the sum of its segments':
whoever plans must measure, as on any device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgert.errors import OptionError
from edgert.graph import Graph, Node
from edgert.machine import Device
from edgert.profile import Precision
from edgert.tensor import Shape

__all__ = ["Load", "Paper", "load_of", "operations", "transfer_s"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CHANNELS_LAST = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D")
_CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose", *_CHANNELS_LAST)
_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "FULLY_CONNECTED", "BATCH_MATMUL")
_RECURRENT = ("LSTM", "GRU", "RNN")
_PICKING = frozenset({"Gather", "GATHER", "EMBEDDING_LOOKUP"})
"""Nodes that read as much of their table as they write."""
_FREE = _names("""
    QuantizeLinear DequantizeLinear Reshape Flatten Squeeze Unsqueeze Identity Dropout
    QUANTIZE DEQUANTIZE RESHAPE SQUEEZE EXPAND_DIMS
""")
"""Nodes that change how a value is read and move nothing."""
_NARROWING = frozenset({"QuantizeLinear", "QUANTIZE"})
"""Of these, the ones after which a value is kept in its new form."""
_GLUE = _FREE | _names("""
    BatchNormalization Relu LeakyRelu Elu Sigmoid HardSigmoid HardSwish Tanh Clip Gelu Erf Abs Neg Exp Log Sqrt
    Reciprocal Cast Add Sub Mul Div Pow Max Min PRelu Where
    RELU RELU6 LEAKY_RELU LOGISTIC HARD_SWISH TANH GELU ADD SUB MUL DIV MAXIMUM MINIMUM PRELU CAST
""")
"""Nodes that are fused into the kernel of what they read."""


@dataclass(frozen=True, slots=True)
class Paper:
    """What a simulated device declares in `Device.attributes`, at one precision."""

    launch_s: float
    """Every run of a segment."""
    kernel_s: float
    """Every kernel of it."""
    ops_per_s: float
    """Operations (multiply-adds x 2) a second at this precision."""
    depthwise: float
    """Share of `ops_per_s` that convolutions of one channel reach."""
    bytes_per_s: float
    """Between the device and memory."""
    io_bytes_per_s: float
    """For the inputs and outputs of a segment, besides (PCIe, USB, a driver's copy)."""
    sram_bytes: float
    """Largest value that stays on the chip between two kernels."""
    store_bytes: float
    """Weights of a segment up to so many bytes together stay on the chip between runs."""
    dram_bytes_per_s: float
    """Of the memory that all devices of the machine share."""
    jitter: float
    """Standard deviation of the logarithm of a run's time."""
    float_share: float
    """Size of a float here over that in the model's file: 1/2 where float32 runs as float16."""

    @classmethod
    def of(cls, device: Device, precision: Precision) -> Paper:
        """What the device declares.

        Raises:
            OptionError: a number is malformed or not positive.
        """
        rate = _number(device, "ops_per_s", math.inf)
        if precision in ("i8", "f16"):
            rate = _number(device, f"{precision}_ops_per_s", rate)
        return cls(
            launch_s=_number(device, "launch_s", 0.0),
            kernel_s=_number(device, "kernel_s", 0.0),
            ops_per_s=rate,
            depthwise=_number(device, "depthwise", 1.0),
            bytes_per_s=_number(device, "bytes_per_s", math.inf),
            io_bytes_per_s=_number(device, "io_bytes_per_s", math.inf),
            sram_bytes=_number(device, "sram_bytes", 0.0),
            store_bytes=_number(device, "store_bytes", 0.0),
            dram_bytes_per_s=_number(device, "dram_bytes_per_s", math.inf),
            jitter=_number(device, "jitter", 0.0),
            float_share=0.5 if precision == "f16" else 1.0,
        )

    def jittered(self, load: Load, chance: random.Random) -> Load:
        """One run of that load."""
        if not self.jitter:
            return load
        return Load(load.seconds * math.exp(chance.gauss(0.0, self.jitter)), load.memory_s, load.bytes)


@dataclass(frozen=True, slots=True)
class Load:
    """What one run asks of a machine."""

    seconds: float
    """Alone on the machine."""
    memory_s: float
    """Of these, in kernels that memory holds up."""
    bytes: float
    """That it moves to and from memory."""

    def times(self, factor: float) -> Load:
        """So many times the work."""
        return Load(self.seconds * factor, self.memory_s * factor, self.bytes * factor)


def load_of(graph: Graph, paper: Paper) -> Load:
    """What one run of a whole graph takes, its free dimensions as 1; the launch is not in it."""
    work = _Kernels(graph, paper)
    operation_s, moved = [0.0] * work.count, work.moved()
    for index, node in enumerate(graph.nodes):
        kernel = work.kernel[index]
        if kernel is not None:
            rate = paper.ops_per_s * (paper.depthwise if _is_depthwise(node, graph) else 1.0)
            operation_s[kernel] += _operations(node, graph) / rate
    memory_s = [count / paper.bytes_per_s for count in moved]
    kernels = list(zip(operation_s, memory_s, strict=True))
    edge = sum(work.size(value.name) for value in (*graph.inputs, *graph.outputs))
    seconds = math.fsum(max(pair) + paper.kernel_s for pair in kernels) + edge / paper.io_bytes_per_s
    return Load(seconds, math.fsum(wait for busy, wait in kernels if wait > busy), math.fsum(moved))


def transfer_s(device: Device, size_bytes: float) -> float:
    """Declared seconds of a value's way between the host's memory and a simulated device."""
    return _number(device, "link_s", 0.0) + size_bytes / _number(device, "link_bytes_per_s", math.inf)


class _Kernels:
    """Which nodes of a graph run as one kernel, and what each kernel reads and writes."""

    def __init__(self, graph: Graph, paper: Paper) -> None:
        self.graph, self.paper = graph, paper
        self.kernel: list[int | None] = []
        """[node]; None for what costs nothing."""
        self.count = 0
        self._real: dict[str, str] = {}
        """A value that is another one read otherwise -> that one."""
        outputs = {value.name for value in graph.outputs}
        for node in graph.nodes:
            made = [name for name in node.reads if name in graph.producers]
            latest = max(made, key=lambda name: graph.producers[name], default="")
            home = self.kernel[graph.producers[latest]] if latest else None
            alone = len(graph.consumers.get(latest, ())) == 1 and latest not in outputs
            if node.op in _FREE - _NARROWING and node.inputs and len(node.writes) == 1:
                self._real[node.writes[0]] = self._source(node.inputs[0])
            if node.op in _GLUE and home is not None and alone:
                self.kernel.append(home)
            elif node.op in _FREE:
                self.kernel.append(None)
            else:
                self.kernel.append(self.count)
                self.count += 1

    def size(self, name: str) -> float:
        """Bytes of a value, free dimensions as 1."""
        value = self.graph.values.get(name)
        if value is None:
            return 0.0
        return (value.size_bytes() or 0) * (self.paper.float_share if value.dtype == "float32" else 1.0)

    def moved(self) -> list[float]:
        """Bytes to and from memory of each kernel."""
        reads: list[set[str]] = [set() for _ in range(self.count)]
        writes: list[set[str]] = [set() for _ in range(self.count)]
        outputs = {self._source(value.name) for value in self.graph.outputs}
        stored = sum(map(self.size, self.graph.constants)) <= self.paper.store_bytes
        for index, node in enumerate(self.graph.nodes):
            kernel = self.kernel[index]
            for name in map(self._source, node.reads):
                maker = self.graph.producers.get(name)
                home = None if maker is None else self.kernel[maker]
                if kernel is None or (home is not None and home == kernel):
                    continue
                if name in self.graph.constants:
                    picked = node.op in _PICKING and name == self._source(node.inputs[0])
                    reads[kernel] |= set() if stored else {node.writes[0] if picked else name}
                elif home is None or self.size(name) > self.paper.sram_bytes:
                    reads[kernel].add(name)
                    if home is not None:
                        writes[home].add(name)
            if kernel is not None:
                writes[kernel].update(name for name in node.writes if name in outputs)
        return [float(sum(map(self.size, (*r, *w)))) for r, w in zip(reads, writes, strict=True)]

    def _source(self, name: str) -> str:
        return self._real.get(name, name)


def operations(graph: Graph) -> float:
    """Operations of one run: 2 for each multiply-add of convolutions, matrix products and recurrent layers, 1 for each
    other element written. Free dimensions count as 1, and so do unknown shapes.
    """
    return float(sum(_operations(node, graph) for node in graph.nodes))


def _operations(node: Node, graph: Graph) -> float:
    inner = sum(operations(body) for body in node.subgraphs)
    written = sum(_elements(_shape(graph, name)) for name in node.writes)
    operands = [_shape(graph, name) for name in node.inputs if name]
    if node.op in _PRODUCTS and operands and operands[0]:
        return inner + 2.0 * written * _elements(operands[0][-1:])
    if node.op in _CONVOLUTIONS:
        kernel = _weights(operands)
        channels = kernel[-1:] if node.op == "DEPTHWISE_CONV_2D" else kernel[:1]
        return inner + 2.0 * written * _elements(kernel) / _elements(channels)
    if node.op in _RECURRENT and len(operands) > 2:  # X is (steps, batch, size); W and R are applied in every step
        return inner + 2.0 * _elements(operands[0][:2]) * sum(map(_elements, operands[1:3]))
    return inner + written


def _is_depthwise(node: Node, graph: Graph) -> bool:
    if node.op not in _CONVOLUTIONS:
        return False
    group = node.attributes.get("group", 1)
    return node.op == "DEPTHWISE_CONV_2D" or (isinstance(group, int) and group > 1)


def _weights(operands: Sequence[Shape]) -> Shape:
    return max((shape for shape in operands[1:] if len(shape) > 2), key=_elements, default=())


def _shape(graph: Graph, name: str) -> Shape:
    value = graph.values.get(name)
    return value.shape or () if value is not None else ()


def _elements(shape: Shape) -> int:
    return math.prod(size if isinstance(size, int) else 1 for size in shape)


_MAY_BE_ZERO = frozenset({"launch_s", "kernel_s", "link_s", "jitter", "sram_bytes", "store_bytes"})


def _number(device: Device, name: str, default: float) -> float:
    attributes: Mapping[str, str] = device.attributes
    text = attributes.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if number > 0 or (number == 0 and name in _MAY_BE_ZERO):
        return number
    raise OptionError(
        f"simulated device {device.id} declares {name} = {text!r}.", "Give a positive number in its attributes."
    )

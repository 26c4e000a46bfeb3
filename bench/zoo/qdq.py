"""Static INT8 quantisation of a float ONNX model, written as QuantizeLinear / DequantizeLinear pairs.

Weights are int8, symmetric, one scale a channel; activations uint8, asymmetric, one scale a tensor, with the range seen
on sample inputs; biases int32. This is the form that ONNX Runtime and OpenVINO both turn into integer kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bench.zoo.builder import Array

_WEIGHTED: Mapping[str, int] = {"Conv": 0, "Gemm": 0, "MatMul": 1}
"""Operation -> axis of its weight that holds the output channels (Gemm: always with transB=1)."""
JOINED = frozenset({"Add", "GlobalAveragePool", "AveragePool", "Concat"})
"""Operations without weights whose inputs and output are quantised."""
_INPUTS_ONLY = frozenset({"MatMul"})
"""Their sums stay float: what follows (bias, LayerNormalization, Softmax) wants the precision."""
_FUSED = frozenset({"Relu", "Clip"})
"""Activations that a kernel applies before it rounds."""


@dataclass(frozen=True, slots=True)
class Range:
    """Scale and zero point of one uint8 activation."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, low: float, high: float) -> Range:
        """For numbers from `low` to `high`; zero is always represented exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-8) / 255
        return cls(scale, round(-low / scale))


def quantise(
    model: onnx.ModelProto, samples: Sequence[Mapping[str, Array]], *, joined: frozenset[str] = JOINED
) -> onnx.ModelProto:
    """The same model with integer arithmetic.

    Args:
        model: float; every Gemm with transB=1.
        samples: inputs that it is run on, to see the ranges of its activations.
        joined: operations without weights to quantise too. A transformer's residual sums want their precision: pass
            an empty set.
    """
    scheme = _scheme(model.graph, joined)
    names = list(dict.fromkeys([*scheme.made, *(name for reads in scheme.reads.values() for name in reads)]))
    writer = _Writer(model.graph, scheme, calibrate(model, names, samples))
    for value in model.graph.input:
        writer.quantised(value.name)
    for node in model.graph.node:
        writer.copy(node)
    done = onnx.ModelProto()
    done.CopyFrom(model)
    del done.graph.node[:], done.graph.initializer[:]
    done.graph.node.extend(writer.nodes)
    used = {name for node in writer.nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    done.graph.initializer.extend([*kept, *writer.weights])
    return done


def calibrate(model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Mapping[str, Array]]) -> dict[str, Range]:
    """Range of each named value over the samples, by ONNX Runtime."""
    import onnxruntime

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    given = {value.name for value in model.graph.input}
    already = {value.name for value in model.graph.output}
    wanted = [name for name in names if name not in given]
    probed.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted if name not in already
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probed.SerializeToString(), options, ["CPUExecutionProvider"])
    lows, highs = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for sample in samples:
        seen = dict(zip(wanted, session.run(wanted, dict(sample)), strict=True)) | dict(sample)
        for name in names:
            lows[name] = min(lows[name], float(seen[name].min()))
            highs[name] = max(highs[name], float(seen[name].max()))
    return {name: Range.of(lows[name], highs[name]) for name in names}


@dataclass(frozen=True, slots=True)
class _Scheme:
    """Which activations become integers."""

    reads: Mapping[str, tuple[str, ...]]
    """Name of each quantised operation -> activations that it reads."""
    made: frozenset[str]
    """Values that quantised operations make, after the activation that goes with them."""


def _scheme(graph: onnx.GraphProto, joined: frozenset[str]) -> _Scheme:
    weights = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    reads: dict[str, tuple[str, ...]] = {}
    made: set[str] = set()
    for node in graph.node:
        if node.op_type not in _WEIGHTED and node.op_type not in joined:
            continue
        if node.op_type == "Add" and any(name in weights for name in node.input):
            continue
        count = 2 if node.op_type in _WEIGHTED else len(node.input)
        reads[node.name] = tuple(name for name in node.input[:count] if name not in weights)
        if node.op_type not in _INPUTS_ONLY:
            after = readers.get(node.output[0], [])
            fused = len(after) == 1 and after[0].op_type in _FUSED
            made.add(after[0].output[0] if fused else node.output[0])
    return _Scheme(reads, frozenset(made))


@dataclass
class _Writer:
    """The quantised graph under construction.

    A value that a quantised operation makes is read dequantised by everyone. One that only a quantised operation reads
    stays float for its other readers (a residual sum keeps its precision), and each quantised reader has a
    DequantizeLinear of its own: ONNX Runtime moves one past a Reshape only if nobody shares it.
    """

    graph: onnx.GraphProto
    scheme: _Scheme
    ranges: Mapping[str, Range]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._floats = {tensor.name: tensor for tensor in self.graph.initializer}
        self._scales: dict[str, Array] = {}
        self._products = {node.output[0]: node for node in self.graph.node if node.op_type == "MatMul"}

    def quantised(self, name: str, source: str = "") -> None:
        """The value's integers, from its float form `source` (by default itself), if anything wants them."""
        if name in self.ranges:
            scale = self._keep(name + "_scale", np.asarray(self.ranges[name].scale, np.float32))
            zero = self._keep(name + "_zero", np.asarray(self.ranges[name].zero_point, np.uint8))
            self._node("QuantizeLinear", [source or name, scale, zero], name + "_q")

    def copy(self, node: onnx.NodeProto) -> None:
        """The node with its weights and activations quantised."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in self.scheme.reads.get(node.name, ()) and name not in self.scheme.made:
                new.input[position] = self._dequantise(name, f"{name}_{node.name}_{position}")
        if node.op_type in _WEIGHTED and node.input[1] in self._floats:
            new.input[1] = self._weight(node.input[1], _WEIGHTED[node.op_type])
            if len(node.input) > 2:
                new.input[2] = self._bias(node.input[2], node.input[0], node.input[1])
        product = self._products.get(node.input[0]) if node.op_type == "Add" else None
        if product is not None and product.input[1] in self._floats and node.input[1] in self._floats:
            # MatMul and Add become one Gemm, whose bias has to be an integer too.
            new.input[1] = self._bias(node.input[1], product.input[0], product.input[1])
        self.nodes.append(new)
        output = node.output[0]
        if output in self.scheme.made:
            new.output[0] = output + "_raw"
            self.quantised(output, output + "_raw")
            self._dequantise(output, output)
        else:
            self.quantised(output)

    def _dequantise(self, name: str, sink: str) -> str:
        self._node("DequantizeLinear", [name + "_q", name + "_scale", name + "_zero"], sink)
        return sink

    def _weight(self, name: str, axis: int) -> str:
        if name not in self._scales:
            array = numpy_helper.to_array(self._floats[name])
            others = tuple(index for index in range(array.ndim) if index != axis)
            scales = np.maximum(np.abs(array).max(others, keepdims=True), 1e-8).astype(np.float32) / np.float32(127)
            self._scales[name] = scales.reshape(-1)
            integers = np.clip(np.rint(array / scales), -127, 127).astype(np.int8)
            self._dequantised(name, integers, self._scales[name], axis)
        return name + "_dq"

    def _bias(self, name: str, x: str, weight: str) -> str:
        array = numpy_helper.to_array(self._floats[name])
        scales = np.float32(self.ranges[x].scale) * self._scales[weight]
        integers = np.rint(array / scales).astype(np.int64).clip(-(2**31), 2**31 - 1).astype(np.int32)
        self._dequantised(name, integers, scales, 0)
        return name + "_dq"

    def _dequantised(self, name: str, integers: Array, scales: Array, axis: int) -> None:
        zero = self._keep(name + "_zero", np.zeros(scales.shape, integers.dtype))
        scale = self._keep(name + "_scale", scales)
        self._node("DequantizeLinear", [self._keep(name + "_q", integers), scale, zero], name + "_dq", axis=axis)

    def _keep(self, name: str, array: Array) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}_node", **attributes))

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
_JOINED = frozenset({"Add", "GlobalAveragePool", "AveragePool", "Concat"})
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


def quantise(model: onnx.ModelProto, samples: Sequence[Mapping[str, Array]]) -> onnx.ModelProto:
    """The same model with integer arithmetic, its ranges taken from running it on `samples`."""
    names = _quantised_values(model.graph)
    writer = _Writer(model.graph, calibrate(model, names, samples))
    for value in model.graph.input:
        if value.name in names:
            writer.pair(value.name, value.name, value.name + "_dq")
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


def _quantised_values(graph: onnx.GraphProto) -> list[str]:
    """Activations that become integers: what a quantised operation reads, and what it makes."""
    weights = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, None] = {}
    for node in graph.node:
        if node.op_type not in _WEIGHTED and node.op_type not in _JOINED:
            continue
        if node.op_type == "Add" and any(name in weights for name in node.input):
            continue
        count = 2 if node.op_type in _WEIGHTED else len(node.input)
        found.update(dict.fromkeys(name for name in node.input[:count] if name not in weights))
        if node.op_type not in _INPUTS_ONLY:
            after = readers.get(node.output[0], [])
            fused = len(after) == 1 and after[0].op_type in _FUSED
            found[after[0].output[0] if fused else node.output[0]] = None
    return list(found)


@dataclass
class _Writer:
    """The quantised graph under construction."""

    graph: onnx.GraphProto
    ranges: Mapping[str, Range]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._floats = {tensor.name: tensor for tensor in self.graph.initializer}
        self._given = {value.name for value in self.graph.input}
        self._scales: dict[str, Array] = {}

    def pair(self, source: str, stem: str, sink: str) -> None:
        """Quantise and dequantise `source`; the result is called `sink`."""
        found = self.ranges[stem]
        scale = self._keep(stem + "_scale", np.asarray(found.scale, np.float32))
        zero = self._keep(stem + "_zero", np.asarray(found.zero_point, np.uint8))
        self._node("QuantizeLinear", [source, scale, zero], stem + "_q")
        self._node("DequantizeLinear", [stem + "_q", scale, zero], sink)

    def copy(self, node: onnx.NodeProto) -> None:
        """The node with its weights and activations quantised."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in self.ranges and name in self._given:
                new.input[position] = name + "_dq"
        weight = node.input[1] if node.op_type in _WEIGHTED else ""
        if weight in self._floats:
            new.input[1] = self._weight(weight, _WEIGHTED[node.op_type])
            if len(node.input) > 2:
                new.input[2] = self._bias(node.input[2], node.input[0], weight)
        self.nodes.append(new)
        output = node.output[0]
        if output in self.ranges:
            new.output[0] = output + "_raw"
            self.pair(output + "_raw", output, output)

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

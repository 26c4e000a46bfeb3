"""Writes ONNX graphs: names nodes, keeps weights, draws seeded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

OPSET = 17
"""The first with LayerNormalization; every backend reads it."""
IR_VERSION = 8
"""That goes with the opset; a newer one would shut out older readers for nothing."""


def filter_weights(rng: np.random.Generator, shape: tuple[int, ...], gain: float) -> Array:
    """Weights out x ..., variance gain^2 / fan-in, each output's with a mean of zero.

    A ReLU's outputs are all positive: with a mean the common part grows with depth, until a random network answers
    every input alike.
    """
    weight = rng.standard_normal(shape, np.float32)
    others = tuple(range(1, len(shape)))
    fan_in = int(np.prod(shape[1:]))
    if fan_in > 16:  # a depthwise filter without its mean would only see edges
        weight -= weight.mean(others, keepdims=True)
    return np.asarray(weight * np.float32(gain / np.sqrt(fan_in)))


class Builder:
    """A graph under construction. Every method that adds a node returns the name of its output."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def weight(self, array: Array, hint: str = "w") -> str:
        name = f"{hint}_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def ints(self, *numbers: int) -> str:
        """A constant list of int64."""
        return self.weight(np.asarray(numbers, np.int64), "ints")

    def normal(self, *shape: int, fan_in: int, gain: float = 1.0) -> str:
        """A weight with variance gain^2 / fan_in; gain sqrt(2) keeps the variance through a ReLU (He et al., 2015)."""
        drawn = self.rng.standard_normal(shape, np.float32)
        return self.weight(drawn * np.float32(gain / np.sqrt(fan_in)))

    def filters(self, *shape: int, gain: float = 1.0) -> str:
        """Weights of a layer whose outputs are axis 0, by `filter_weights`."""
        return self.weight(filter_weights(self.rng, shape, gain))

    def bias(self, size: int, deviation: float = 0.05) -> str:
        return self.weight(self.rng.standard_normal(size, np.float32) * np.float32(deviation), "b")

    def node(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """One node with one output, named `out` or after the node."""
        name = f"{op.lower()}_{len(self._nodes)}"
        output = out or f"{name}_out"
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def nodes(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """One node with several outputs."""
        name = f"{op.lower()}_{len(self._nodes)}"
        made = [f"{name}_out{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), made, name=name, **attributes))
        return made

    def conv(
        self,
        x: str,
        channels: tuple[int, int],
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        group: int = 1,
        act: str = "relu",
        gain: float | None = None,
    ) -> str:
        """A convolution with its batch normalisation folded in.

        Args:
            x: NCHW.
            channels: in and out.
            kernel: height and width.
            stride: of both axes.
            group: `channels[0]` for a depthwise one.
            act: 'relu', 'relu6' or ''.
            gain: as in `normal`; by default sqrt(2) with an activation, else 1.
        """
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        gain = gain if gain is not None else (np.sqrt(2.0) if act else 1.0)
        weight = self.filters(channels[1], channels[0] // group, height, width, gain=gain)
        pads = [(height - 1) // 2, (width - 1) // 2, height // 2, width // 2]
        y = self.node("Conv", x, weight, self.bias(channels[1]), kernel_shape=[height, width],
                      strides=[stride, stride], pads=pads, group=group)  # fmt: skip
        return self.activation(y, act)

    def activation(self, x: str, act: str) -> str:
        if act == "relu":
            return self.node("Relu", x)
        if act == "relu6":
            low, high = self.weight(np.asarray(0, np.float32), "low"), self.weight(np.asarray(6, np.float32), "high")
            return self.node("Clip", x, low, high)
        return x

    def dense(self, x: str, sizes: tuple[int, int], *, act: str = "", gain: float | None = None, out: str = "") -> str:
        """Rows of `x` through a fully connected layer (Gemm)."""
        gain = gain if gain is not None else (np.sqrt(2.0) if act else 1.0)
        weight = self.filters(sizes[1], sizes[0], gain=gain)
        y = self.node("Gemm", x, weight, self.bias(sizes[1]), transB=1, out="" if act else out)
        return self.activation(y, act)

    def model(self, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """The finished model, checked."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._weights)
        return finish(graph, metadata)


def finish(graph: onnx.GraphProto, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """A model around a graph."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edgert zoo")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, dict(metadata or {}))
    return model

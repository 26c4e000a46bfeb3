"""Writes a chain of layers as a TFLite flatbuffer, float or fully integer, through the schema's object API.

The integer form follows the TFLite quantisation specification: int8 activations, asymmetric; int8 weights, symmetric,
one scale an output channel; int32 biases with scale input x weight; softmax outputs with scale 1/256, zero point -128.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from bench.zoo.builder import Array
from bench.zoo.network import Conv, Dense, Flatten, Layer, Mean, Network, Softmax, to_onnx, value_names
from bench.zoo.qdq import Range, calibrate

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
}


@dataclass(frozen=True, slots=True)
class Codes:
    """Quantisation of one tensor."""

    scales: Array
    zero_points: Array
    axis: int = 0


def to_tflite(network: Network, samples: Sequence[Array] = ()) -> bytes:
    """The network as a .tflite file, batch 1.

    Args:
        network: the layers.
        samples: inputs as the ONNX form takes them (1 x C x H x W), to take the ranges from; empty for a float model.
    """
    names = value_names(network)
    ranges: Mapping[str, Range] = {}
    if samples:
        ranges = calibrate(to_onnx(network), names, [{network.input: sample} for sample in samples])
    return _Writer(network, ranges).write()


@dataclass
class _Writer:
    network: Network
    ranges: Mapping[str, Range]
    """Of the activations; empty for a float model."""
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])  # the first one is empty by convention
    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: list[Any] = field(default_factory=list)

    def write(self) -> bytes:
        names, shapes = value_names(self.network), self.network.shapes()
        quantised = [self._activation(name, index) for index, name in enumerate(names)]
        places = [
            self._tensor(name, _nhwc(shape), None, codes, np.float32 if codes is None else np.int8)
            for name, shape, codes in zip(names, shapes, quantised, strict=True)
        ]
        for index, layer in enumerate(self.network.layers):
            self._layer(layer, places[index], places[index + 1], shapes[index], quantised[index])
        return self._model(places[0], places[-1])

    def _activation(self, name: str, index: int) -> Codes | None:
        """Quantisation of the input (index 0) or of a layer's output."""
        if name not in self.ranges:
            return None
        layer = self.network.layers[index - 1] if index else None
        if isinstance(layer, Softmax):
            return Codes(np.asarray([1 / 256], np.float32), np.asarray([-128]))
        if isinstance(layer, Flatten):  # moves elements only: the scale stays
            return self._activation(value_names(self.network)[index - 1], index - 1)
        found = self.ranges[name]
        return Codes(np.asarray([found.scale], np.float32), np.asarray([found.zero_point - 128]))

    def _layer(self, layer: Layer, x: int, y: int, shape: tuple[int, ...], codes: Codes | None) -> None:
        if isinstance(layer, Conv):
            self._conv(layer, x, y, codes)
        elif isinstance(layer, Dense):
            weight, bias = self._weights(_dense_weight(layer, self._flattened(layer)), layer.bias, 0, codes)
            options = schema.FullyConnectedOptionsT(fusedActivationFunction=_activation(layer.relu))
            self._operator("FULLY_CONNECTED", [x, weight, bias], y, options)
        elif isinstance(layer, Mean):
            axes = self._tensor("axes", (2,), np.asarray([1, 2], np.int32))
            self._operator("MEAN", [x, axes], y, schema.ReducerOptionsT(keepDims=False))
        elif isinstance(layer, Flatten):
            size = int(np.prod(shape))
            target = self._tensor("flat_shape", (2,), np.asarray([-1, size], np.int32))
            self._operator("RESHAPE", [x, target], y, schema.ReshapeOptionsT(newShape=[-1, size]))
        else:
            self._operator("SOFTMAX", [x], y, schema.SoftmaxOptionsT(beta=1.0))

    def _conv(self, layer: Conv, x: int, y: int, codes: Codes | None) -> None:
        common = {
            "strideW": layer.stride,
            "strideH": layer.stride,
            "dilationWFactor": 1,
            "dilationHFactor": 1,
            "padding": schema.Padding.SAME,
            "fusedActivationFunction": _activation(layer.relu),
        }
        if layer.depthwise:
            weight, bias = self._weights(layer.weight.transpose(1, 2, 3, 0), layer.bias, 3, codes)
            options = schema.DepthwiseConv2DOptionsT(depthMultiplier=1, **common)
            self._operator("DEPTHWISE_CONV_2D", [x, weight, bias], y, options)
        else:
            weight, bias = self._weights(layer.weight.transpose(0, 2, 3, 1), layer.bias, 0, codes)
            self._operator("CONV_2D", [x, weight, bias], y, schema.Conv2DOptionsT(**common))

    def _flattened(self, layer: Dense) -> tuple[int, ...] | None:
        """The C x H x W shape that a dense layer reads flattened, if it does."""
        layers, shapes = self.network.layers, self.network.shapes()
        index = next(index for index, other in enumerate(layers) if other is layer)
        return shapes[index - 1] if index and isinstance(layers[index - 1], Flatten) else None

    def _weights(self, weight: Array, bias: Array, axis: int, codes: Codes | None) -> tuple[int, int]:
        """Tensors of a layer's weight and bias; `codes` are those of its input."""
        stem = f"layer_{len(self.operators)}"
        weight = np.ascontiguousarray(weight, np.float32)
        if codes is None:
            return self._tensor(stem + "_w", weight.shape, weight), self._tensor(stem + "_b", bias.shape, bias)
        others = tuple(index for index in range(weight.ndim) if index != axis)
        scales = np.maximum(np.abs(weight).max(others, keepdims=True), 1e-8).astype(np.float32) / np.float32(127)
        flat = scales.reshape(-1)
        integers = np.clip(np.rint(weight / scales), -127, 127).astype(np.int8)
        summed = codes.scales[0] * flat
        zeros = np.zeros(flat.shape, np.int64)
        return (
            self._tensor(stem + "_w", weight.shape, integers, Codes(flat, zeros, axis)),
            self._tensor(stem + "_b", bias.shape, np.rint(bias / summed).astype(np.int32), Codes(summed, zeros)),
        )

    def _tensor(
        self, name: str, shape: tuple[int, ...], data: Array | None, codes: Codes | None = None, dtype: Any = None
    ) -> int:
        tensor = schema.TensorT(shape=list(shape), name=name, hasRank=True)
        tensor.type = _TYPES[np.dtype(dtype) if data is None else data.dtype]
        tensor.quantization = schema.QuantizationParametersT()
        if codes is not None:
            tensor.quantization.scale = codes.scales.tolist()
            tensor.quantization.zeroPoint = codes.zero_points.tolist()
            tensor.quantization.quantizedDimension = codes.axis
        tensor.buffer = len(self.buffers)
        contents = None if data is None else np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self.buffers.append(schema.BufferT(data=contents))
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _operator(self, op: str, inputs: list[int], output: int, options: Any) -> None:
        number = getattr(schema.BuiltinOperator, op)
        if number not in self.codes:
            self.codes.append(number)
        kind = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self.codes.index(number),
                inputs=inputs,
                outputs=[output],
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def _model(self, first: int, last: int) -> bytes:
        model = schema.ModelT(version=3, description=self.network.name)
        # Versions 3 and above stand for int8 with per-channel weights; a float file says 1.
        model.operatorCodes = [
            schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=_version(code, self.ranges))
            for code in self.codes
        ]
        model.subgraphs = [
            schema.SubGraphT(
                tensors=self.tensors, inputs=[first], outputs=[last], operators=self.operators, name="main"
            )
        ]
        model.buffers = self.buffers
        model.signatureDefs = [
            schema.SignatureDefT(
                inputs=[schema.TensorMapT(self.network.input, first)],
                outputs=[schema.TensorMapT(self.network.output, last)],
                signatureKey="serving_default",
            )
        ]
        packer = flatbuffers.Builder(1 << 16)
        packer.Finish(model.Pack(packer), b"TFL3")
        return bytes(packer.Output())


def _version(code: int, ranges: Mapping[str, Range]) -> int:
    """The operator's version that first had int8 (see TFLite's op_version.cc)."""
    if not ranges:
        return 1
    operators = schema.BuiltinOperator
    return {
        operators.CONV_2D: 3,
        operators.DEPTHWISE_CONV_2D: 3,
        operators.FULLY_CONNECTED: 4,
        operators.MEAN: 2,
        operators.SOFTMAX: 2,
    }.get(code, 1)


def _activation(relu: bool) -> int:
    return int(schema.ActivationFunctionType.RELU if relu else schema.ActivationFunctionType.NONE)


def _nhwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, shape[1], shape[2], shape[0]) if len(shape) == 3 else (1, *shape)


def _dense_weight(layer: Dense, flattened: tuple[int, ...] | None) -> Array:
    """Out x in, its inputs in the order in which NHWC flattens."""
    if flattened is None:
        return layer.weight
    return layer.weight.reshape(-1, *flattened).transpose(0, 2, 3, 1).reshape(layer.weight.shape)

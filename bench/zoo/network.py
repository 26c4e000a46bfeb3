"""Plain chains of layers, written as ONNX (NCHW) and, by `zoo.tflite`, as TFLite (NHWC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx

from bench.zoo.builder import Array, Builder


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution with 'SAME' padding: ceil(size / stride) outputs, the odd pad at the end."""

    weight: Array
    """float32, out x in x height x width; for a depthwise one in is 1."""
    bias: Array
    """float32, out."""
    stride: int = 1
    depthwise: bool = False
    relu: bool = True


@dataclass(frozen=True, slots=True)
class Dense:
    """A fully connected layer."""

    weight: Array
    """float32, out x in."""
    bias: Array
    relu: bool = False


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over height and width."""


@dataclass(frozen=True, slots=True)
class Flatten:
    """NCHW to rows, in the order C, H, W."""


@dataclass(frozen=True, slots=True)
class Softmax:
    """Rows to probabilities."""


Layer: TypeAlias = Conv | Dense | Mean | Flatten | Softmax


@dataclass(frozen=True, slots=True)
class Network:
    """A chain of layers."""

    name: str
    shape: tuple[int, ...]
    """Of one input: channels x height x width, or features."""
    layers: tuple[Layer, ...]
    input: str = "input"
    output: str = "output"

    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of the input and of every layer's output, without the batch."""
        found = [self.shape]
        for layer in self.layers:
            found.append(_after(layer, found[-1]))
        return found


def _after(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, Conv):
        return (len(layer.bias), -(-shape[1] // layer.stride), -(-shape[2] // layer.stride))
    if isinstance(layer, Dense):
        return (len(layer.bias),)
    if isinstance(layer, Mean):
        return shape[:1]
    return (int(np.prod(shape)),) if isinstance(layer, Flatten) else shape


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pads before and after one axis, as TensorFlow's 'SAME' has them."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def value_names(network: Network) -> list[str]:
    """Name of the input and of every layer's output, the same in both formats."""
    inner = [f"{type(layer).__name__.lower()}_{index}" for index, layer in enumerate(network.layers[:-1])]
    return [network.input, *inner, network.output]


def to_onnx(network: Network, batch: int | str = 1) -> onnx.ModelProto:
    """The network as a float ONNX model; a `str` makes the batch free."""
    build = Builder(network.name)
    names, shapes = value_names(network), network.shapes()
    build.input(network.input, [batch, *network.shape])
    for layer, x, to, shape in zip(network.layers, names, names[1:], shapes, strict=False):
        _write(build, layer, x, to, shape)
    build.output(network.output, [batch, *shapes[-1]])
    return build.model()


def _write(build: Builder, layer: Layer, x: str, to: str, shape: tuple[int, ...]) -> None:
    if isinstance(layer, Conv):
        height, width = layer.weight.shape[2:]
        rows, columns = same_pads(shape[1], height, layer.stride), same_pads(shape[2], width, layer.stride)
        y = build.node("Conv", x, build.weight(layer.weight), build.weight(layer.bias, "b"),
                       kernel_shape=[height, width], strides=[layer.stride] * 2,
                       pads=[rows[0], columns[0], rows[1], columns[1]],
                       group=shape[0] if layer.depthwise else 1, out="" if layer.relu else to)  # fmt: skip
    elif isinstance(layer, Dense):
        weight, bias = build.weight(layer.weight), build.weight(layer.bias, "b")
        y = build.node("Gemm", x, weight, bias, transB=1, out="" if layer.relu else to)
    elif isinstance(layer, Mean):
        build.node("Flatten", build.node("GlobalAveragePool", x), out=to)
    elif isinstance(layer, Flatten):
        build.node("Flatten", x, out=to)
    else:
        build.node("Softmax", x, out=to, axis=-1)
    if isinstance(layer, Conv | Dense) and layer.relu:
        build.node("Relu", y, out=to)

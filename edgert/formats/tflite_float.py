"""Writes a .tflite in which some quantised operators compute in floats: dequantise -> the operator -> quantise.

For libraries that lack an integer kernel of an operator. Everything around it stays in integers, and the values that
others see keep their types and scales.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from edgert.errors import ModelUnsupported
from edgert.formats.flat import schema, trusting
from edgert.formats.tflite_write import Buffer, pack
from edgert.graph import Quantization
from edgert.tensor import Array

if TYPE_CHECKING:
    from edgert.formats.tflite import TfliteFile

_CROSSING = ("int8", "uint8", "int16")
"""Element types for which DEQUANTIZE and QUANTIZE have kernels."""
_CONSTANT = (*_CROSSING, "int32")
"""Those of quantised constants; a bias is of 32 bits."""


def float_nodes(source: TfliteFile, nodes: Collection[str]) -> tuple[bytes, tuple[int | None, ...]]:
    """The whole model, with these operators in floats.

    A constant that such an operator reads becomes floats in the file; of any other value it gets a float copy.

    Args:
        source: the model.
        nodes: names of nodes of its graph.

    Returns:
        The file; and for each of its operators the index that it had before, None for a conversion.

    Raises:
        ModelUnsupported: one of these values is quantised in a form that cannot be converted.
    """
    with trusting(source.path):
        model = schema().ModelT.InitFromPackedBuf(source.data)
        writer = _Writer(source, model)
        chosen = {source.operators[name] for name in nodes}
        operators, origin = [], list[int | None]()
        for index, operator in enumerate(writer.main.operators):
            before, after = writer.floated(operator) if index in chosen else ([], [])
            operators += [*before, operator, *after]
            origin += [None] * len(before) + [index] + [None] * len(after)
        writer.main.operators = operators
        return bytes(pack(model, source)), tuple(origin)


class _Writer:
    """Adds tensors, buffers and conversions to an unpacked model."""

    def __init__(self, source: TfliteFile, model: Any) -> None:
        self.source, self.model = source, model
        self.main = model.subgraphs[source.subgraph]
        self._names = {index: name for name, index in source.tensors.items()}

    def floated(self, operator: Any) -> tuple[list[Any], list[Any]]:
        """Make an operator read and write floats; the conversions that go before and after it."""
        before, after = [], []
        copies: dict[int, int] = {}
        for index in dict.fromkeys(_numbers(operator.inputs)):
            name = self._names.get(index, "")
            if self._quantization(name) is None:
                continue
            constant = self.source.graph.constants.get(name)
            if constant is None:
                self._check(name, _CROSSING)
                copies[index] = self._tensor(index, name)
                before.append(self._conversion("DEQUANTIZE", index, copies[index]))
            else:
                self._check(name, _CONSTANT)
                copies[index] = self._tensor(index, name, _dequantised(constant.read(), self._quantization(name)))
        operator.inputs = [copies.get(index, index) for index in _numbers(operator.inputs)]
        outputs = _numbers(operator.outputs)
        for place, index in enumerate(outputs):
            name = self._names[index]
            if self._quantization(name) is not None:
                self._check(name, _CROSSING)
                outputs[place] = self._tensor(index, name)
                after.append(self._conversion("QUANTIZE", outputs[place], index))
        operator.outputs = outputs
        return before, after

    def _quantization(self, name: str) -> Quantization | None:
        value = self.source.graph.values.get(name)
        return None if value is None else value.quantization

    def _check(self, name: str, known: Collection[str]) -> None:
        dtype = self.source.graph.values[name].dtype
        if dtype not in known:
            raise ModelUnsupported(
                f"value {name!r} of {self.source.path.name} is quantised as {dtype}, which cannot be turned into "
                "floats beside one operator.", "Export the model with int8 values there.",
            )  # fmt: skip

    def _tensor(self, like: int, name: str, content: Array | None = None) -> int:
        """A float tensor of another one's shape; with `content` a constant."""
        names = schema()
        old, tensor = self.main.tensors[like], names.TensorT()
        tensor.shape, tensor.shapeSignature, tensor.hasRank = old.shape, old.shapeSignature, old.hasRank
        tensor.type, tensor.buffer = names.TensorType.FLOAT32, 0
        tensor.name = f"{name} in floats {len(self.main.tensors)}".encode("utf-8", "surrogateescape")
        if content is not None:
            self.model.buffers.append(Buffer(memoryview(content.tobytes())))
            tensor.buffer = len(self.model.buffers) - 1
        self.main.tensors.append(tensor)
        return len(self.main.tensors) - 1

    def _conversion(self, op: str, source: int, sink: int) -> Any:
        operator = schema().OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self._code(op), [source], [sink]
        return operator

    def _code(self, op: str) -> int:
        """Index of an operator code; version 3 has kernels for every type of `_CROSSING` in both directions."""
        names = schema()
        number = getattr(names.BuiltinOperator, op)
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version in (1, 2, 3):
                return index
        code = names.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        code.version = 2
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1


def _numbers(indices: Any) -> list[int]:
    return [int(index) for index in (indices if indices is not None else ())]


def _dequantised(content: Array, quantization: Quantization | None) -> Array:
    """Scale * (integer - zero point), one of each or one a slice along the axis."""
    if quantization is None:
        return content.astype(np.float32)
    scales, points = np.asarray(quantization.scales, np.float32), np.asarray(quantization.zero_points, np.float32)
    if quantization.axis is not None and len(scales) > 1:
        shape = [-1 if axis == quantization.axis else 1 for axis in range(content.ndim)]
        scales, points = scales.reshape(shape), points.reshape(shape)
    return np.ascontiguousarray(scales * (content.astype(np.float32) - points))

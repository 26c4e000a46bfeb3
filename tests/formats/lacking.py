"""Quantised .tflite models with an operator for which LiteRT has no integer kernel."""

from __future__ import annotations

from edgert.formats.flat import schema

LACKING = ("SQUARE", "SIN", "FLOOR", "SIGN")
"""Refused in int8 and taken in floats: the first three as tensors are prepared, SIGN as it runs."""
_CHAIN = (("x", 0.05, 3), ("a", 0.04, -128), ("b", 0.1, 5), ("y", 0.1, 5))
"""Name, scale and zero point of the values around RELU, the operator and RELU."""


def quantised_with(op: str) -> bytes:
    """RELU, `op`, RELU on int8 (1, 64)."""
    import flatbuffers

    names = schema()
    model, graph = names.ModelT(), names.SubGraphT()
    model.version, model.buffers, model.operatorCodes, graph.tensors = 3, [names.BufferT()], [], []
    for name, scale, point in _CHAIN:
        tensor, quantization = names.TensorT(), names.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = [scale], [point]
        tensor.name, tensor.shape, tensor.type, tensor.quantization = name, [1, 64], names.TensorType.INT8, quantization
        tensor.buffer = 0
        graph.tensors.append(tensor)
    for each in ("RELU", op):
        code = names.OperatorCodeT()
        code.builtinCode = getattr(names.BuiltinOperator, each)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 2 if each == "RELU" else 1
        model.operatorCodes.append(code)
    graph.operators = []
    for index, code in enumerate((0, 1, 0)):
        operator = names.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = code, [index], [index + 1]
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [0], [3]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())

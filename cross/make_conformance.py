#!/usr/bin/env python3
"""Make the small models that `edgert probe` runs on every device, and what they must answer.

    python cross/make_conformance.py        # writes devices/conformance_*.onnx, *.tflite, .npz and devices/peak_*.onnx

One network of integers, in four clothes: ONNX (QDQ) and TFLite, float32 and int8. A 3x3 convolution of stride 2 over
4x8x8, a ReLU, a dense layer to 10. The expected answers are computed here with numpy alone, in exact integers (int8)
and float64 (float32), so that no backend is its own judge. Needs onnx and ai-edge-litert; the same bytes on every run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).resolve().parent.parent / "devices"
Array = npt.NDArray[Any]

# real = scale * (integer - zero point). No layer saturates, and no scale is a power of two: a device that computes
# float32 in bfloat16 must not get away with it.
INPUT_SCALE, INPUT_ZERO = 0.0157, 128
WEIGHT_SCALE = 0.0081
HIDDEN_SCALE, HIDDEN_ZERO = 0.0307, 0
DENSE_SCALE = 0.0037
OUTPUT_SCALE, OUTPUT_ZERO = 0.1211, 128
OPSET = 17
PEAK_STEPS = 4


def main() -> None:
    """Write every file."""
    random = np.random.default_rng(8)
    conv = random.integers(-100, 101, (8, 4, 3, 3)).astype(np.int8)
    conv_bias = random.integers(-3000, 3001, 8).astype(np.int32)
    dense = random.integers(-100, 101, (10, 128)).astype(np.int8)
    dense_bias = random.integers(-3000, 3001, 10).astype(np.int32)
    weights: dict[str, Array] = {"conv": conv, "conv_bias": conv_bias, "dense": dense, "dense_bias": dense_bias}
    # Four channels: a software GPU compiles the convolution of three in twice the seconds.
    inputs = random.integers(0, 256, (3, 4, 8, 8)).astype(np.uint8)
    exact, stepped = answers(inputs, weights)
    assert stepped.min() > 0, "saturated"
    assert stepped.max() < 255, "saturated"
    np.savez(
        FOLDER / "conformance.npz",
        inputs=inputs,
        outputs_f32=exact,
        outputs_i8=stepped,
        input_quantization=np.array([INPUT_SCALE, INPUT_ZERO]),
        output_quantization=np.array([OUTPUT_SCALE, OUTPUT_ZERO]),
    )
    save_onnx("conformance_f32", float_nodes(), float_weights(weights), (1, 4, 8, 8), (1, 10))
    save_onnx("conformance_i8", quantised_nodes(), quantised_weights(weights), (1, 4, 8, 8), (1, 10))
    (FOLDER / "conformance_f32.tflite").write_bytes(tflite(weights, quantised=False))
    (FOLDER / "conformance_i8.tflite").write_bytes(tflite(weights, quantised=True))
    for size in (1024, 4096):
        save_onnx(f"peak_f32_{size}", *peak_f32(size), (size, 1), (1, size))
        save_onnx(f"peak_i8_{size}", *peak_i8(size), (size, 1), (1, size))
        save_onnx(f"peak_copy_{size}", *peak_copy(size), (size, 1), (size, 1))


def answers(inputs: Array, weights: dict[str, Array]) -> tuple[Array, Array]:
    """The network's outputs: float64 without rounding, and with every layer rounded to its integers."""
    centred = inputs.astype(np.int64) - INPUT_ZERO
    padded = np.pad(centred, ((0, 0), (0, 0), (0, 1), (0, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    sums = np.einsum("nchwij,ocij->nohw", windows, weights["conv"].astype(np.int64))
    sums = np.maximum(sums + weights["conv_bias"][None, :, None, None], 0).reshape(len(inputs), -1)
    real = sums * (INPUT_SCALE * WEIGHT_SCALE)
    hidden = np.clip(np.rint(real / HIDDEN_SCALE), 0, 255)
    wide, bias = weights["dense"].astype(np.int64), weights["dense_bias"]
    # The bias is in steps of (hidden scale x dense scale) in both clothes.
    stepped = (hidden @ wide.T + bias) * (HIDDEN_SCALE * DENSE_SCALE)
    exact = (real / HIDDEN_SCALE @ wide.T + bias) * (HIDDEN_SCALE * DENSE_SCALE)
    return exact.astype(np.float32), np.clip(np.rint(stepped / OUTPUT_SCALE) + OUTPUT_ZERO, 0, 255).astype(np.uint8)


def float_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", ["x", "conv", "conv_bias"], ["c"], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "dense", "dense_bias"], ["y"], transB=1),
    ]


def float_weights(weights: dict[str, Array]) -> dict[str, Array]:
    scales = {
        "conv": WEIGHT_SCALE,
        "conv_bias": INPUT_SCALE * WEIGHT_SCALE,
        "dense": DENSE_SCALE,
        "dense_bias": HIDDEN_SCALE * DENSE_SCALE,
    }
    return {name: (array * scales[name]).astype(np.float32) for name, array in weights.items()}


def quantised_nodes() -> list[onnx.NodeProto]:
    """The float nodes with every tensor rounded (QuantizeLinear, DequantizeLinear) on its way."""
    rounded = []
    for value, name in (("x", "in"), ("r", "hidden"), ("y_real", "out")):
        rounded.append([
            helper.make_node("QuantizeLinear", [value, f"{name}_scale", f"{name}_zero"], [f"{value}_q"]),
            helper.make_node("DequantizeLinear", [f"{value}_q", f"{name}_scale", f"{name}_zero"],
                             ["y" if name == "out" else f"{value}_dq"]),
        ])  # fmt: skip
    read = [
        helper.make_node("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_dq"])
        for name in ("conv", "conv_bias", "dense", "dense_bias")
    ]
    return [
        *read,
        *rounded[0],
        helper.make_node("Conv", ["x_dq", "conv_dq", "conv_bias_dq"], ["c"], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        *rounded[1],
        helper.make_node("Flatten", ["r_dq"], ["f"]),
        helper.make_node("Gemm", ["f", "dense_dq", "dense_bias_dq"], ["y_real"], transB=1),
        *rounded[2],
    ]


def quantised_weights(weights: dict[str, Array]) -> dict[str, Array]:
    scales: dict[str, tuple[float, np.integer[Any]]] = {
        "in": (INPUT_SCALE, np.uint8(INPUT_ZERO)),
        "hidden": (HIDDEN_SCALE, np.uint8(HIDDEN_ZERO)),
        "out": (OUTPUT_SCALE, np.uint8(OUTPUT_ZERO)),
        "conv": (WEIGHT_SCALE, np.int8(0)),
        "conv_bias": (INPUT_SCALE * WEIGHT_SCALE, np.int32(0)),
        "dense": (DENSE_SCALE, np.int8(0)),
        "dense_bias": (HIDDEN_SCALE * DENSE_SCALE, np.int32(0)),
    }
    constants: dict[str, Array] = {**weights}
    for name, (scale, zero) in scales.items():
        constants |= {f"{name}_scale": np.asarray(scale, np.float32), f"{name}_zero": np.asarray(zero)}
    return constants


def peak_f32(size: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """A chain of square matrix products that starts from a column and ends in a row: next to nothing to transfer.

    Every entry of the first matrix is 1/size when the input is, and stays so: 1/size = size x (1/size)^2.
    """
    nodes = [helper.make_node("Mul", ["x", "ones"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{step}", "m0"], [f"m{step + 1}"]) for step in range(PEAK_STEPS)]
    nodes.append(helper.make_node("ReduceMax", [f"m{PEAK_STEPS}"], ["y"], axes=[0], keepdims=1))
    return nodes, {"ones": np.ones((1, size), np.float32)}


def peak_i8(size: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """The same chain with every matrix rounded to 8 bits; the scale keeps 1/size at 64 steps."""
    nodes = [helper.make_node("Mul", ["x", "ones"], ["p0"])]
    for step in range(PEAK_STEPS + 1):
        if step:
            nodes.append(helper.make_node("MatMul", [f"m{step - 1}", "m0"], [f"p{step}"]))
        nodes.append(helper.make_node("QuantizeLinear", [f"p{step}", "scale", "zero"], [f"q{step}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{step}", "scale", "zero"], [f"m{step}"]))
    nodes.append(helper.make_node("ReduceMax", [f"m{PEAK_STEPS}"], ["y"], axes=[0], keepdims=1))
    scale: dict[str, Array] = {"scale": np.asarray(1 / (64 * size), np.float32), "zero": np.asarray(0, np.uint8)}
    return nodes, {"ones": np.ones((1, size), np.float32), **scale}


def peak_copy(size: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """A chain of softmaxes over a square matrix: each reads and writes it once, and no compiler joins two of them."""
    nodes = [helper.make_node("Mul", ["x", "ones"], ["m0"])]
    nodes += [helper.make_node("Softmax", [f"m{step}"], [f"m{step + 1}"], axis=-1) for step in range(PEAK_STEPS)]
    nodes.append(helper.make_node("ReduceMax", [f"m{PEAK_STEPS}"], ["y"], axes=[1], keepdims=1))
    return nodes, {"ones": np.ones((1, size), np.float32)}


def save_onnx(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
) -> None:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    (FOLDER / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


def tflite(weights: dict[str, Array], *, quantised: bool) -> bytes:
    """The network as a .tflite file: channels last, padding 'same' (one at the end), the ReLU fused."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    dense = weights["dense"].reshape(10, 8, 4, 4).transpose(0, 2, 3, 1).reshape(10, 128)
    turned = {**weights, "conv": weights["conv"].transpose(0, 2, 3, 1), "dense": dense}
    constants = turned if quantised else float_weights(turned)
    steps: dict[str, tuple[float, int]] = {
        "x": (INPUT_SCALE, INPUT_ZERO - 128), "r": (HIDDEN_SCALE, HIDDEN_ZERO - 128),
        "y": (OUTPUT_SCALE, OUTPUT_ZERO - 128), "conv": (WEIGHT_SCALE, 0), "dense": (DENSE_SCALE, 0),
        "conv_bias": (INPUT_SCALE * WEIGHT_SCALE, 0), "dense_bias": (HIDDEN_SCALE * DENSE_SCALE, 0),
    }  # fmt: skip
    shapes = {"x": (1, 8, 8, 4), "r": (1, 4, 4, 8), "y": (1, 10)} | {key: a.shape for key, a in constants.items()}
    model = schema.ModelT()
    model.version, model.description = 3, "edgert conformance"
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.name, graph.tensors = "main", []
    for name, shape in shapes.items():
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), 0
        if name in constants:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(constants[name]).tobytes(), np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        tensor.type = schema.TensorType.FLOAT32
        if quantised:
            tensor.type = schema.TensorType.INT32 if name.endswith("_bias") else schema.TensorType.INT8
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [steps[name][0]], [steps[name][1]]
        graph.tensors.append(tensor)
    order = list(shapes)
    conv = schema.Conv2DOptionsT()
    conv.padding, conv.strideH, conv.strideW = schema.Padding.SAME, 2, 2
    conv.fusedActivationFunction = schema.ActivationFunctionType.RELU
    graph.operators = [
        operator(schema, 0, ([order.index(name) for name in ("x", "conv", "conv_bias")], order.index("r")),
                 conv, schema.BuiltinOptions.Conv2DOptions),
        operator(schema, 1, ([order.index(name) for name in ("r", "dense", "dense_bias")], order.index("y")),
                 schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions),
    ]  # fmt: skip
    graph.inputs, graph.outputs = [order.index("x")], [order.index("y")]
    model.subgraphs = [graph]
    model.operatorCodes = []
    for code in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED):
        entry = schema.OperatorCodeT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        # int8 came with these versions; older readers refuse instead of misreading
        entry.version = (3 if code == schema.BuiltinOperator.CONV_2D else 4) if quantised else 1
        model.operatorCodes.append(entry)
    builder = flatbuffers.Builder(1 << 14)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operator(schema: Any, code: int, values: tuple[list[int], int], options: Any, kind: int) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = code, values[0], [values[1]]
    made.builtinOptions, made.builtinOptionsType = options, kind
    return made


if __name__ == "__main__":
    main()

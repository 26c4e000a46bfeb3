"""Small model files for the tests of the readers, each with something that is easily got wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgert.formats.flat import schema

F32 = TensorProto.FLOAT


def info(name, dtype=F32, shape=(1, 4)):
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(name, *shape, dtype=np.float32, seed=0):
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(shape).astype(dtype), name)


def model(nodes, inputs, outputs, initializers=(), ir_version=10, opset=21, functions=(), domains=(), **graph):
    made = helper.make_graph(nodes, "g", inputs, outputs, initializers, **graph)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(made, ir_version=ir_version, opset_imports=opsets, functions=functions)


def save(proto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def chain():
    """MatMul, Add, Relu with one large and one small constant, and a constant that is a node."""
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32([2.0]))),
        helper.make_node("MatMul", ["x", "w"], ["a"], "mm"),
        helper.make_node("Add", ["a", "b"], ["c"], "add"),
        helper.make_node("Mul", ["c", "two"], ["d"], "mul"),
        helper.make_node("Relu", ["d"], ["y"], "relu"),
    ]
    return model(
        nodes,
        [info("x", shape=("batch", 4))],
        [info("y", shape=("batch", 400))],
        [weights("w", 4, 400), weights("b", 400)],
    )


def external(folder: Path) -> Path:
    """`chain` with its large constant in a file of its own."""
    path = folder / "external.onnx"
    onnx.save_model(
        chain(), path, save_as_external_data=True, location="weights.bin", size_threshold=1024, convert_attribute=False
    )
    return path


def control_flow():
    """If whose branches read an outer value and an outer constant; Loop whose body contains another If."""
    then = helper.make_graph([helper.make_node("Add", ["a", "w"], ["t"])], "then", [], [info("t")])
    other = helper.make_graph([helper.make_node("Identity", ["a"], ["e"])], "else", [], [info("e")])
    inner = helper.make_graph([helper.make_node("Mul", ["s", "a"], ["p"])], "inner", [], [info("p")])
    stay = helper.make_graph([helper.make_node("Identity", ["s"], ["q"])], "stay", [], [info("q")])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["keep"], ["keep_out"]),
            helper.make_node("If", ["flag"], ["s_out"], then_branch=inner, else_branch=stay),
        ],
        "body",
        [info("i", TensorProto.INT64, ()), info("keep", TensorProto.BOOL, ()), info("s")],
        [info("keep_out", TensorProto.BOOL, ()), info("s_out")],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("If", ["flag"], ["b"], "if", then_branch=then, else_branch=other),
        helper.make_node("Loop", ["n", "", "b"], ["y"], "loop", body=body),
    ]
    n = numpy_helper.from_array(np.int64(3), "n")
    return model(nodes, [info("x"), info("flag", TensorProto.BOOL, ())], [info("y")], [weights("w", 1, 4), n])


def with_function():
    """A model-local function that calls another one."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    double = helper.make_function("local", "Double", ["i"], ["o"], [helper.make_node("Add", ["i", "i"], ["o"])], opsets)
    calls = [helper.make_node("Double", [a], [b], domain="local") for a, b in (("i", "m"), ("m", "o"))]
    quad = helper.make_function("local", "Quad", ["i"], ["o"], calls, opsets)
    nodes = [
        helper.make_node("Quad", ["x"], ["a"], "quad", domain="local"),
        helper.make_node("Relu", ["a"], ["y"], "relu"),
    ]
    return model(nodes, [info("x")], [info("y")], functions=[double, quad], domains=["local"])


def qdq():
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    zero = numpy_helper.from_array(np.int8(0), "zero")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    return model(nodes, [info("x")], [info("y")], [scale, zero])


def sequences():
    """Sequence, optional and sparse values between nodes."""
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, 2]), "sp"), numpy_helper.from_array(np.int64([0, 3]), "spi"), [4]
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], sparse_value=sparse),
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"], "seq"),
        helper.make_node("ConcatFromSequence", ["s"], ["c"], "cat", axis=0),
        helper.make_node("Add", ["c", "k"], ["y"], "add"),
    ]
    return model(nodes, [info("x")], [info("y", shape=(2, 4))])


def cyclic():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "first"), helper.make_node("Relu", ["a"], ["b"], "second")]
    return model(nodes, [info("x")], [info("b")])


def random_onnx(reads: Sequence[tuple[int, int]]):
    """A graph of Add and Mul on (1, 4): node i reads two earlier values; index 0 is the input."""
    names = ["x", *(f"v{index}" for index in range(len(reads)))]
    nodes = [
        helper.make_node("Add" if (a + b) % 2 else "Sub", [names[a], names[b]], [names[index + 1]], f"n{index}")
        for index, (a, b) in enumerate(reads)
    ]
    return model(nodes, [info("x")], [info(names[-1])])


class Flat:
    """Builds a .tflite with the schema's object API."""

    def __init__(self):
        self.s = schema()
        self.model = self.s.ModelT()
        self.model.version, self.model.description = 3, "made for a test"
        self.model.operatorCodes, self.model.subgraphs = [], []
        self.model.buffers = [self.s.BufferT()]
        self.model.signatureDefs = []

    def subgraph(self, name="main"):
        graph = self.s.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs, graph.name = [], [], [], [], name
        self.model.subgraphs.append(graph)
        return graph

    def tensor(self, graph, name, shape=(1, 4), dtype="FLOAT32", data=None, **fields):
        tensor = self.s.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), getattr(self.s.TensorType, dtype)
        for field, content in fields.items():
            setattr(tensor, field, content)
        if data is not None:
            buffer = self.s.BufferT()
            buffer.data = np.frombuffer(data.tobytes() if isinstance(data, np.ndarray) else data, np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def op(self, graph, name, inputs, outputs, options=None, custom=None, **fields):
        code = self.s.OperatorCodeT()
        code.builtinCode = getattr(self.s.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode = custom
        self.model.operatorCodes.append(code)
        operator = self.s.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options:
            operator.builtinOptionsType = getattr(self.s.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.s, options + "T")()
            for field, content in fields.items():
                setattr(operator.builtinOptions, field, content)
        graph.operators.append(operator)

    def signature(self, key, subgraph, inputs, outputs):
        def pairs(names):
            made = []
            for name, index in names.items():
                pair = self.s.TensorMapT()
                pair.name, pair.tensorIndex = name, index
                made.append(pair)
            return made

        signature = self.s.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, subgraph
        signature.inputs, signature.outputs = pairs(inputs), pairs(outputs)
        self.model.signatureDefs.append(signature)

    def bytes(self):
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def random_tflite(reads: Sequence[tuple[int, int]]) -> bytes:
    """As `random_onnx`."""
    flat = Flat()
    graph = flat.subgraph()
    indices = [flat.tensor(graph, "x")]
    for number, (a, b) in enumerate(reads):
        indices.append(flat.tensor(graph, f"v{number}"))
        name = "ADD" if (a + b) % 2 else "SUB"
        flat.op(graph, name, [indices[a], indices[b]], [indices[-1]], "AddOptions" if name == "ADD" else "SubOptions")
    graph.inputs, graph.outputs = [0], [indices[-1]]
    return flat.bytes()


def tflite_rich() -> bytes:
    """Duplicate and empty names, a free dimension, quantised, string and INT4 constants, a custom op, a variable."""
    flat = Flat()
    graph = flat.subgraph()
    quantised = flat.s.QuantizationParametersT()
    quantised.scale, quantised.zeroPoint = [0.5], [3]
    x = flat.tensor(graph, "x", shapeSignature=[-1, 4])
    y = flat.tensor(graph, "x")
    z = flat.tensor(graph, "")
    k = flat.tensor(graph, "k", (4,), "INT8", np.int8([1, 2, 3, 4]), quantization=quantised)
    flat.tensor(graph, "texts", (2,), "STRING", np.int32([2, 16, 18, 21]).tobytes() + b"abcde")
    flat.tensor(graph, "nibbles", (3,), "INT4", bytes([0xF1, 0x07]))
    state = flat.tensor(graph, "state", isVariable=True)
    flat.op(graph, "ADD", [x, state], [y], "AddOptions")
    flat.op(graph, "CUSTOM", [y, k, -1], [z], custom="Mystery")
    graph.inputs, graph.outputs = [x], [z]
    flat.signature("first", 0, {"in": x}, {"out": z})
    flat.signature("second", 0, {"in": x}, {"out": y})
    return flat.bytes()


def tflite_while() -> bytes:
    """A WHILE that doubles x until its counter is 3, then an ADD; the second signature is another subgraph."""
    flat = Flat()
    main, cond, body, other = (flat.subgraph(name) for name in ("main", "cond", "body", "other"))
    x, zero = flat.tensor(main, "x"), flat.tensor(main, "zero", (), "INT32", np.int32(0))
    count, looped, y = flat.tensor(main, "count", (), "INT32"), flat.tensor(main, "looped"), flat.tensor(main, "y")
    flat.op(main, "ADD", [x, x], [flat.tensor(main, "pre")], "AddOptions")
    pre = len(main.tensors) - 1
    flat.op(main, "WHILE", [zero, pre], [count, looped], "WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=2)
    flat.op(main, "ADD", [looped, x], [y], "AddOptions")
    main.inputs, main.outputs = [x], [y]
    c, v = flat.tensor(cond, "c", (), "INT32"), flat.tensor(cond, "v")
    three, less = flat.tensor(cond, "three", (), "INT32", np.int32(3)), flat.tensor(cond, "less", (), "BOOL")
    flat.op(cond, "LESS", [c, three], [less], "LessOptions")
    cond.inputs, cond.outputs = [c, v], [less]
    c, v = flat.tensor(body, "c", (), "INT32"), flat.tensor(body, "v")
    one = flat.tensor(body, "one", (), "INT32", np.int32(1))
    c2, v2 = flat.tensor(body, "c2", (), "INT32"), flat.tensor(body, "v2")
    flat.op(body, "ADD", [c, one], [c2], "AddOptions")
    flat.op(body, "ADD", [v, v], [v2], "AddOptions")
    body.inputs, body.outputs = [c, v], [c2, v2]
    i, o = flat.tensor(other, "i"), flat.tensor(other, "o")
    flat.op(other, "ADD", [i, i], [o], "AddOptions")
    other.inputs, other.outputs = [i], [o]
    flat.signature("serving", 0, {"in": x}, {"out": y})
    flat.signature("other", 3, {"in": i}, {"out": o})
    return flat.bytes()


def tflite_variable() -> bytes:
    """y = x + x, then a resource variable that is assigned and read."""
    flat = Flat()
    graph = flat.subgraph()
    x, a = flat.tensor(graph, "x"), flat.tensor(graph, "a")
    handle = flat.tensor(graph, "handle", (), "RESOURCE")
    y = flat.tensor(graph, "y")
    flat.op(graph, "ADD", [x, x], [a], "AddOptions")
    flat.op(graph, "VAR_HANDLE", [], [handle], "VarHandleOptions", container="", sharedName="v")
    flat.op(graph, "ASSIGN_VARIABLE", [handle, a], [], "AssignVariableOptions")
    flat.op(graph, "READ_VARIABLE", [handle], [y], "ReadVariableOptions")
    graph.inputs, graph.outputs = [x], [y]
    return flat.bytes()

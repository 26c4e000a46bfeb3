"""Reads a .tflite file into a `Graph`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from edgert.errors import ModelUnsupported
from edgert.formats.files import beside, digest_with, map_file, rest, sha256, unique_names
from edgert.formats.flat import Reader, external_buffer, has_external_buffers, schema, trusting
from edgert.formats.tflite_sparse import read_sparse, read_sparsity
from edgert.formats.tflite_tensors import read_constant
from edgert.graph import Attribute, Constant, Format, Graph, Node, Quantization, Signature, Value
from edgert.profile import Precision
from edgert.tensor import DType, Shape, size_bytes

_DTYPES: Mapping[str, DType] = {  # schema's name -> element type; resources and variants have none
    "FLOAT32": "float32", "FLOAT16": "float16", "INT32": "int32", "UINT8": "uint8", "INT64": "int64",
    "STRING": "string",
    "BOOL": "bool", "INT16": "int16", "COMPLEX64": "complex64", "INT8": "int8", "FLOAT64": "float64",
    "COMPLEX128": "complex128", "UINT64": "uint64", "UINT32": "uint32", "UINT16": "uint16", "INT4": "int4",
    "BFLOAT16": "bfloat16", "INT2": "int2", "UINT4": "uint4", "FLOAT8_E4M3FN": "float8_e4m3fn",
    "FLOAT8_E5M2": "float8_e5m2",
}  # fmt: skip
_PRECISIONS: Mapping[str, Precision] = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_MAX_RANK = 32
_MAX_BYTES = 1 << 62
_MAX_BODIES = 10_000


@dataclass(frozen=True)
class TfliteFile:
    """A .tflite file that was read; see `edgert.formats.ModelFile`."""

    path: Path
    graph: Graph
    data: memoryview = field(repr=False)
    subgraph: int
    """Index of the subgraph that `graph` shows."""
    operators: Mapping[str, int] = field(repr=False)
    """Node name -> index of its operator in the file."""
    tensors: Mapping[str, int] = field(repr=False)
    """Value name -> index of its tensor in the file."""
    format: Format = "tflite"

    @cached_property
    def digest(self) -> str:
        return digest_with(sha256(self.data), companions(self.path, self.data))

    @cached_property
    def precision(self) -> Precision:
        return _precision(self.graph)

    def write(
        self, nodes: Collection[str], path: Path, keep: Collection[str] = (), *, lean: bool = False
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        from edgert.formats.tflite_write import write_nodes

        return write_nodes(self, nodes, path, keep, lean=lean)


def open_tflite(path: Path, data: memoryview) -> TfliteFile:
    """Read a .tflite file.

    Args:
        path: absolute.
        data: the file's bytes.

    Raises:
        ModelCorrupt, ModelUnsupported, MissingPackage: see `edgert.formats.open_model`.
    """
    generated = schema()
    if has_external_buffers(path, data) and not hasattr(generated, "ExternalBuffer"):
        raise ModelUnsupported(
            f"model {str(path)!r} keeps weights in other files, which this ai-edge-litert does not know.",
            "pip install --upgrade ai-edge-litert",
        )
    with trusting(path):
        model = generated.Model.GetRootAs(data, 0)
        reader = _Tflite(path, data, model)
        main = reader.signature_list[0][1].subgraph if reader.signature_list else 0
        body = reader.body(main)
    rest(data)
    return TfliteFile(path, body.graph, data, main, body.operators, body.tensors)


def companions(path: Path, data: memoryview) -> Iterator[tuple[str, Path]]:
    """Location and file of every group of external buffers."""
    with trusting(path):
        model = schema().Model.GetRootAs(data, 0)
        reader = Reader(path, data)
        names = [reader.text(group.Name()) for group in reader.tables(model, "ExternalBufferGroups")]
    for name in names:
        yield name, beside(path, name, "a buffer group")


@dataclass(frozen=True, slots=True)
class _Body:
    graph: Graph
    operators: Mapping[str, int]
    tensors: Mapping[str, int]


class _Tflite(Reader):
    """Reads one model; its subgraphs are read when a node (or the caller) asks for them."""

    def __init__(self, path: Path, data: memoryview, model: Any) -> None:
        super().__init__(path, data)
        self._check_table(model, "the model")
        self.model = model
        self.subgraphs = self.tables(model, "Subgraphs")
        self.buffers = self.tables(model, "Buffers")
        self.ops = [self._op(code) for code in self.tables(model, "OperatorCodes")]
        self.external = {int(item.Id()): item for item in self.tables(model, "ExternalBuffers")}
        self.groups = [self.text(group.Name()) for group in self.tables(model, "ExternalBufferGroups")]
        if not self.subgraphs:
            raise self.corrupt("it has no subgraph")
        self.values = [self._values(subgraph) for subgraph in self.subgraphs]
        self.signature_list = [self._signature(item) for item in self.tables(model, "SignatureDefs")]
        self._open: list[int] = []
        self._bodies: dict[int, _Body] = {}
        self._expanded: dict[int, int] = {}  # subgraphs that each one stands for with every call expanded

    def _op(self, code: Any) -> str:
        # Codes beyond 127 live in the newer field; old files have only the deprecated one.
        number = max(int(code.BuiltinCode()), int(code.DeprecatedBuiltinCode()))
        name = _names("BuiltinOperator").get(number)
        if name is None:
            raise ModelUnsupported(
                f"model {str(self.path)!r} has operator number {number}, unknown to this ai-edge-litert.",
                "pip install --upgrade ai-edge-litert",
            )
        return f"CUSTOM:{self.text(code.CustomCode())}" if name == "CUSTOM" else name

    def _values(self, subgraph: Any) -> list[tuple[Value, Any]]:
        tensors = self.tables(subgraph, "Tensors")
        wanted = [self.text(tensor.Name()) or f"tensor_{index}" for index, tensor in enumerate(tensors)]
        names = unique_names(wanted)
        return [(self._value(tensor, name), tensor) for tensor, name in zip(tensors, names, strict=True)]

    def _value(self, tensor: Any, name: str) -> Value:
        code = _names("TensorType").get(int(tensor.Type()))
        if code is None:
            raise ModelUnsupported(
                f"tensor {name!r} of {self.path.name} has element type number {tensor.Type()}, unknown here.",
                "pip install --upgrade ai-edge-litert",
            )
        return Value(name, _DTYPES.get(code), self._shape(tensor, name), "tensor", self._quantization(tensor, name))

    def _shape(self, tensor: Any, name: str) -> Shape | None:
        sizes = self.integers(tensor, "Shape")
        free = self.integers(tensor, "ShapeSignature")
        if len(sizes) > _MAX_RANK or any(size < -1 for size in sizes):
            raise self.corrupt(f"tensor {name!r} has an absurd shape {sizes[:8]}")
        if free and len(free) == len(sizes):
            sizes = tuple(-1 if other == -1 else size for size, other in zip(sizes, free, strict=True))
        count = 1
        for size in sizes:
            count *= max(size, 1)
        if count > _MAX_BYTES:
            raise self.corrupt(f"tensor {name!r} has an absurd shape {sizes[:8]}")
        return tuple("" if size < 0 else size for size in sizes)

    def _quantization(self, tensor: Any, name: str) -> Quantization | None:
        found = tensor.Quantization()
        if found is None:
            return None
        self._check_table(found, "quantization")
        scales = tuple(float(scale) for scale in self.numbers(found, "Scale"))
        if not scales:
            return None
        points = self.integers(found, "ZeroPoint") or (0,) * len(scales)
        if len(points) == 1:
            points *= len(scales)
        if len(points) != len(scales):
            raise self.corrupt(f"tensor {name!r} has {len(scales)} scales and {len(points)} zero points")
        return Quantization(scales, points, int(found.QuantizedDimension()) if len(scales) > 1 else None)

    def _signature(self, item: Any) -> tuple[str, Signature]:
        index = int(item.SubgraphIndex())
        if index >= len(self.subgraphs):
            raise self.corrupt(f"a signature names subgraph {index} of {len(self.subgraphs)}")
        inputs = {
            self.text(entry.Name()): self.name(index, int(entry.TensorIndex())) for entry in self.tables(item, "Inputs")
        }
        outputs = {
            self.text(entry.Name()): self.name(index, int(entry.TensorIndex()))
            for entry in self.tables(item, "Outputs")
        }
        return self.text(item.SignatureKey()), Signature(inputs, outputs, index)

    def name(self, subgraph: int, tensor: int) -> str:
        """Name of a tensor; '' for -1, an optional one that is absent."""
        if tensor == -1:
            return ""
        if not 0 <= tensor < len(self.values[subgraph]):
            raise self.corrupt(
                f"something names tensor {tensor} of {len(self.values[subgraph])} in subgraph {subgraph}"
            )
        return self.values[subgraph][tensor][0].name

    def body(self, index: int) -> _Body:
        """A subgraph as a `Graph`.

        Raises:
            ModelCorrupt: subgraphs call each other in a circle, or something in it is malformed.
        """
        if not 0 <= index < len(self.subgraphs):
            raise self.corrupt(f"an operator names subgraph {index} of {len(self.subgraphs)}")
        if index in self._open or len(self._open) > 64:
            raise self.corrupt(f"subgraph {index} calls itself, or calls nest deeper than 64")
        if index not in self._bodies:
            self._open.append(index)
            self._bodies[index] = self._read_body(index)
            self._open.pop()
        return self._bodies[index]

    def _read_body(self, index: int) -> _Body:
        subgraph = self.subgraphs[index]
        operators = self.tables(subgraph, "Operators")
        nodes = self._nodes(index, operators)
        inputs = [self.name(index, tensor) for tensor in self.integers(subgraph, "Inputs")]
        outputs = [self.name(index, tensor) for tensor in self.integers(subgraph, "Outputs")]
        values = {value.name: value for value, _ in self.values[index]}
        made = {name for node in nodes for name in node.writes}
        constants = {
            value.name: self._constant(value, tensor)
            for value, tensor in self.values[index]
            if value.name not in made and value.name not in inputs and self._has_data(value, tensor)
        }
        variables = [value.name for value, tensor in self.values[index] if tensor.IsVariable()]
        variables += [name for node in nodes if node.op == "VAR_HANDLE" for name in node.writes]
        self._check_order(nodes, {*inputs, *constants, *variables})
        description = self.text(self.model.Description())
        values |= {name: constant.value for name, constant in constants.items()}
        graph = Graph(
            "tflite", self.text(subgraph.Name()), nodes, tuple(values[name] for name in inputs if name),
            tuple(values[name] for name in outputs if name), values, constants,
            signatures=dict(self.signature_list), variables=tuple(dict.fromkeys(variables)),
            metadata={"description": description} if description else {},
        )  # fmt: skip
        operator_of = {node.name: position for position, node in enumerate(nodes)}
        return _Body(
            graph, operator_of, {value.name: position for position, (value, _) in enumerate(self.values[index])}
        )

    def _check_order(self, nodes: Sequence[Node], ready: set[str]) -> None:
        # LiteRT runs operators in the file's order, so a file that is not sorted is not valid.
        for node in nodes:
            for name in node.reads:
                if name not in ready:
                    raise self.corrupt(f"operator {node.name!r} reads {name!r} before anything makes it")
            for name in node.writes:
                if name in ready and node.op != "VAR_HANDLE":
                    raise self.corrupt(f"operator {node.name!r} makes {name!r}, which exists already")
            ready.update(node.writes)

    def _nodes(self, index: int, operators: Sequence[Any]) -> tuple[Node, ...]:
        parts = []
        for operator in operators:
            code = int(operator.OpcodeIndex())
            if code >= len(self.ops):
                raise self.corrupt(f"an operator has code {code} of {len(self.ops)}")
            inputs = tuple(self.name(index, tensor) for tensor in self.integers(operator, "Inputs"))
            outputs = tuple(self.name(index, tensor) for tensor in self.integers(operator, "Outputs"))
            parts.append((self.ops[code], inputs, outputs, *self._options(operator)))
        wanted = [next((name for name in part[2] if name), f"{part[0]}_{at}") for at, part in enumerate(parts)]
        names = unique_names(wanted)
        nodes = tuple(
            Node(name, op, inputs, outputs, attributes, tuple(self.body(body).graph for body in bodies))
            for name, (op, inputs, outputs, attributes, bodies) in zip(names, parts, strict=True)
        )
        self._expanded[index] = 1 + sum(self._expanded[body] for part in parts for body in part[4])
        if self._expanded[index] > _MAX_BODIES:
            raise self.corrupt(f"subgraph {index} stands for more than {_MAX_BODIES} subgraphs, calls expanded")
        return nodes

    def _options(self, operator: Any) -> tuple[dict[str, Attribute], list[int]]:
        """Attributes of an operator, and the subgraphs that it runs."""
        attributes: dict[str, Attribute] = {}
        for suffix in ("", "2"):
            kind = _names(f"BuiltinOptions{suffix}").get(
                int(getattr(operator, f"BuiltinOptions{suffix}Type")()), "NONE"
            )
            table = getattr(operator, f"BuiltinOptions{suffix}")()
            if kind == "NONE" or table is None:
                continue
            options = getattr(schema(), kind)()
            options.Init(table.Bytes, table.Pos)
            self._check_table(options, kind)
            for getter, name, vector in _option_fields(kind):
                attributes[name] = self.integers(options, getter) if vector else _scalar(getattr(options, getter)())
        bodies: list[int] = []
        for name, content in attributes.items():
            if name == "subgraph" or name.endswith("_subgraph_index"):
                bodies.append(content)  # type: ignore[arg-type]  # the schema says that these are integers
            elif name.endswith("_subgraph_indices"):
                bodies.extend(content)  # type: ignore[arg-type]
        return attributes, [body for body in bodies if body >= 0]

    def _has_data(self, value: Value, tensor: Any) -> bool:
        if tensor.IsVariable():
            return False
        if external_buffer(tensor):
            return True
        index = int(tensor.Buffer())
        if index >= len(self.buffers):
            raise self.corrupt(f"tensor {self.text(tensor.Name())!r} names buffer {index} of {len(self.buffers)}")
        buffer = self.buffers[index]
        # Buffer 0 means "no data" by convention; some writers give each tensor that has none an empty one of its own.
        return (index != 0 and (buffer.DataLength() > 0 or int(buffer.Offset()) > 1)) or 0 in (value.shape or ())

    def _constant(self, value: Value, tensor: Any) -> Constant:
        content = self._content(value, tensor)
        shape = self.integers(tensor, "Shape")  # a signature with free dimensions means nothing here
        if value.dtype is None or any(size < 0 for size in shape):
            raise self.corrupt(f"constant {value.name!r} has no full type")
        sparsity = read_sparsity(self, tensor, value.name)
        asked_bytes = size_bytes(value.dtype, shape)
        if value.dtype != "string" and sparsity is None and asked_bytes != len(content):
            raise self.corrupt(f"constant {value.name!r} holds {len(content)} bytes, its shape asks for {asked_bytes}")
        if sparsity is not None:
            shown = Value(value.name, value.dtype, shape, "sparse", value.quantization)
            return Constant(shown, len(content), partial(read_sparse, content, shown, sparsity))
        shown = Value(value.name, value.dtype, shape, "tensor", value.quantization)
        return Constant(shown, len(content), partial(read_constant, content, shown))

    def _content(self, value: Value, tensor: Any) -> memoryview:
        if external_buffer(tensor):
            return self._external(value, external_buffer(tensor))
        buffer = self.buffers[int(tensor.Buffer())]
        if int(buffer.Offset()) > 1:  # 1 is a placeholder that converters write before they know
            start, size = int(buffer.Offset()), int(buffer.Size())
            if start + size > len(self.data):
                raise self.corrupt(f"constant {value.name!r} needs bytes up to {start + size} of {len(self.data)}")
            return self.data[start : start + size]
        if buffer.DataIsNone():
            return self.data[:0]
        return memoryview(buffer.DataAsNumpy())

    def _external(self, value: Value, identifier: int) -> memoryview:
        item = self.external.get(identifier)
        if item is None or int(item.Group()) >= len(self.groups):
            raise self.corrupt(f"constant {value.name!r} names external buffer {identifier}, which is not declared")
        content = map_file(beside(self.path, self.groups[int(item.Group())], f"constant {value.name!r}"))
        start, size = int(item.Offset()), int(item.Length())
        if start + size > len(content):
            raise self.corrupt(f"constant {value.name!r} needs bytes up to {start + size} of {len(content)}")
        return content[start : start + size]


def _scalar(content: Any) -> Attribute:
    if isinstance(content, bytes):
        return content.decode("utf-8", "surrogateescape")
    return content if isinstance(content, (bool, int, float)) else None


@cache
def _names(enum: str) -> Mapping[int, str]:
    """Number -> name of one of the schema's enumerations."""
    members = vars(getattr(schema(), enum))
    return {number: name for name, number in members.items() if isinstance(number, int) and not name.startswith("_")}


@cache
def _option_fields(kind: str) -> tuple[tuple[str, str, bool], ...]:
    """(getter, snake_case name, is it a vector of numbers) of each field of an options table."""
    accessors = vars(getattr(schema(), kind))
    skip = {"Init", "GetRootAs", f"GetRootAs{kind}"}
    fields = []
    for getter in accessors:
        if (
            getter.startswith("_")
            or getter in skip
            or getter.endswith(("AsNumpy", "IsNone", "Length", "BufferHasIdentifier"))
        ):
            continue
        if f"{getter}AsNumpy" not in accessors and f"{getter}Length" in accessors:
            continue  # a vector of tables or strings: no small attribute
        snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in getter).lstrip("_")
        fields.append((getter, snake, f"{getter}AsNumpy" in accessors))
    return tuple(fields)


def _precision(graph: Graph) -> Precision:
    if any(_is_quantised(value) for value in graph.values.values()):
        return "i8"
    made = (graph.values[name].dtype for node in graph.nodes for name in node.writes)
    floats = Counter(_PRECISIONS[dtype] for dtype in made if dtype is not None and dtype in _PRECISIONS)
    return max(floats, key=lambda name: floats[name], default="f32")


def _is_quantised(value: Value) -> bool:
    return value.quantization is not None and value.dtype is not None and "int" in value.dtype

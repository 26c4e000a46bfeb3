"""Reads an .onnx file into a `Graph`."""

from __future__ import annotations

import heapq
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgert.errors import ModelCorrupt
from edgert.formats.artefacts import CONTEXT, contexts
from edgert.formats.files import digest_with, rest, sha256, unique_names
from edgert.formats.onnx_check import STANDARD, check_texts, check_versions, domain_of, parse
from edgert.formats.onnx_tensors import (
    check_sparse,
    check_tensor,
    dtype_of_code,
    external_range,
    read_sparse,
    read_tensor,
    size_bytes,
    tensors,
)
from edgert.formats.onnx_types import Types, subgraphs, types_of
from edgert.graph import Attribute, Constant, Format, Graph, Node, Value
from edgert.profile import Precision
from edgert.tensor import Array, dtype_of

if TYPE_CHECKING:
    import onnx

_PRECISIONS: Mapping[str, Precision] = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_QUANTISED = re.compile(
    r"(.*::)?(QuantizeLinear|DynamicQuantize.*|QLinear.*|Q(Gemm|Attention|Embed).*|.*Integer(ToFloat)?)"
)


@dataclass(frozen=True)
class OnnxFile:
    """An .onnx file that was read; see `edgert.formats.ModelFile`."""

    path: Path
    graph: Graph
    proto: onnx.ModelProto = field(repr=False)
    sources: Mapping[str, onnx.NodeProto] = field(repr=False)
    """Node name in `graph` -> node as the file has it."""
    folded: Mapping[str, onnx.NodeProto] = field(repr=False)
    """Constant -> the `Constant` node that the file has for it."""
    types: Types = field(repr=False)
    data: memoryview = field(repr=False)
    """The file's bytes, memory-mapped."""
    format: Format = "onnx"

    @cached_property
    def digest(self) -> str:
        return digest_with(sha256(self.data), _companions(self.proto, self.path))

    @cached_property
    def precision(self) -> Precision:
        return _precision(self.graph)

    def write(
        self, nodes: Collection[str], path: Path, keep: Collection[str] = (), *, lean: bool = False
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        from edgert.formats.onnx_write import write_nodes

        return write_nodes(self, nodes, path, keep, lean=lean)


def open_onnx(path: Path, data: memoryview) -> OnnxFile:
    """Read an .onnx file.

    Args:
        path: absolute; external data is looked for beside it.
        data: the file's bytes.

    Raises:
        ModelNotFound, ModelCorrupt, ModelUnsupported, MissingPackage: see `edgert.formats.open_model`.
    """
    model = parse(path, data)
    rest(data)
    check_versions(path, model)
    check_texts(path, model)
    for tensor in tensors(model):
        check_tensor(tensor, path, f"tensor {tensor.name!r}")
    tuple(_contexts(model, path))  # that they are there, and inside the folder
    types = types_of(model, path)
    body = _body(model.graph, types, path)
    if body.captured:
        name = body.captured[0]
        reader = next((node for node in body.graph.nodes if name in node.reads), None)
        who = f"node {reader.name!r}" if reader else "the graph's outputs"
        raise ModelCorrupt(f"{who} reads {name!r}, which nothing makes.", "Export the model again.")
    graph = Graph(
        **{name: getattr(body.graph, name) for name in ("format", "name", "nodes", "inputs", "outputs", "values")},
        constants=body.graph.constants,
        optional_inputs=_optional_inputs(model),
        opsets={domain_of(entry.domain): entry.version for entry in model.opset_import},
        functions=tuple(f"{function.domain}::{function.name}" for function in model.functions),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )
    return OnnxFile(path, graph, model, body.sources, body.folded, types, data)


def companions(path: Path, data: memoryview) -> Iterator[tuple[str, Path]]:
    """Location and file of all external data of a model."""
    return _companions(parse(path, data), path)


def _companions(model: onnx.ModelProto, path: Path) -> Iterator[tuple[str, Path]]:
    for tensor in tensors(model):
        if tensor.data_location == 1:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            found = external_range(tensor, path, f"tensor {tensor.name!r}")[0]
            if found != Path(os.path.realpath(path)):  # what `skim` left in the model file is part of that
                yield location, found
    yield from _contexts(model, path)


def _contexts(model: onnx.ModelProto, path: Path) -> Iterator[tuple[str, Path]]:
    """Compiled contexts that lie beside the model."""
    found = [node for node in model.graph.node if (node.domain, node.op_type) == CONTEXT]
    return contexts(((node.name, {each.name: _attribute(each) for each in node.attribute}) for node in found), path)


def _optional_inputs(model: onnx.ModelProto) -> frozenset[str]:
    # Before IR version 4 every initialiser had to be listed as an input, so that says nothing.
    if model.ir_version < 4:
        return frozenset()
    return frozenset(info.name for info in model.graph.input) & {tensor.name for tensor in model.graph.initializer}


@dataclass(frozen=True, slots=True)
class _Body:
    graph: Graph
    captured: tuple[str, ...]
    sources: Mapping[str, onnx.NodeProto]
    folded: Mapping[str, onnx.NodeProto]


def _body(proto: onnx.GraphProto, types: Types, path: Path) -> _Body:
    """A graph or a subgraph; what it reads and does not make itself is `captured`."""
    constants = _constants(proto, path)
    outputs = tuple(types.value(info.name) for info in proto.output)
    kept, folded = _fold(proto, {value.name for value in outputs}, constants, path)
    bodies = iter(types.bodies)
    inner = [[_body(body, next(bodies), path) for body in subgraphs(node)] for node in kept]
    names = _node_names(kept)
    made = [_node(node, name, parts) for node, name, parts in zip(kept, names, inner, strict=True)]
    inputs = tuple(types.value(info.name) for info in proto.input if info.name not in constants)
    _check_inputs(inputs)
    nodes = tuple(made[index] for index in _order(made, inputs, constants))
    values = {value.name: value for value in inputs} | {name: constant.value for name, constant in constants.items()}
    values |= {name: types.value(name) for node in nodes for name in node.writes}
    reads = [name for node in nodes for name in node.reads] + [value.name for value in outputs]
    captured = tuple(name for name in dict.fromkeys(reads) if name not in values)
    graph = Graph("onnx", proto.name, nodes, inputs, outputs, values, constants)
    return _Body(graph, captured, dict(zip(names, kept, strict=True)), folded)


def _check_inputs(inputs: Sequence[Value]) -> None:
    names = Counter(value.name for value in inputs)
    wrong = next((name for name, count in names.items() if not name or count > 1), None)
    if wrong is not None:
        raise ModelCorrupt(
            f"input {wrong!r} has no name, or one that another has.", "Give each input a name of its own."
        )


def _fold(
    proto: onnx.GraphProto, outputs: Collection[str], constants: dict[str, Constant], path: Path
) -> tuple[list[onnx.NodeProto], dict[str, onnx.NodeProto]]:
    """Turn `Constant` nodes into constants; returns the other nodes, and the folded ones by value name."""
    kept: list[onnx.NodeProto] = []
    folded: dict[str, onnx.NodeProto] = {}
    for node in proto.node:
        constant = None if any(name in outputs for name in node.output) else _folded(node, path)
        if constant is None:
            kept.append(node)
        else:
            _declare(constants, constant)
            folded[constant.value.name] = node
    return kept, folded


def _declare(constants: dict[str, Constant], constant: Constant) -> None:
    if constant.value.name in constants:
        raise ModelCorrupt(f"constant {constant.value.name!r} is defined twice.", "Export the model again.")
    constants[constant.value.name] = constant


def _constants(proto: onnx.GraphProto, path: Path) -> dict[str, Constant]:
    found: dict[str, Constant] = {}
    for tensor in proto.initializer:
        _declare(found, _constant(tensor.name, tensor, path))
    for sparse in proto.sparse_initializer:
        _declare(found, _sparse_constant(sparse.values.name, sparse, path))
    return found


def _constant(name: str, tensor: onnx.TensorProto, path: Path) -> Constant:
    value = Value(name, dtype_of_code(tensor.data_type, name), tuple(tensor.dims))
    return Constant(value, size_bytes(tensor), partial(read_tensor, tensor, path))


def _sparse_constant(name: str, sparse: onnx.SparseTensorProto, path: Path) -> Constant:
    check_sparse(sparse)
    value = Value(name, dtype_of_code(sparse.values.data_type, name), tuple(sparse.dims), "sparse")
    stored_bytes = size_bytes(sparse.values) + size_bytes(sparse.indices)
    return Constant(value, stored_bytes, partial(read_sparse, sparse, path))


def _folded(node: onnx.NodeProto, path: Path) -> Constant | None:
    """The constant that a `Constant` node is; None for any other node, or one whose value a function's caller sets."""
    if node.op_type != "Constant" or node.domain not in STANDARD or len(node.output) != 1 or len(node.attribute) != 1:
        return None
    name, attribute = node.output[0], node.attribute[0]
    if not name or attribute.ref_attr_name:
        return None
    if attribute.name == "value" and attribute.HasField("t"):
        return _constant(name, attribute.t, path)
    if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
        return _sparse_constant(name, attribute.sparse_tensor, path)
    array = _plain_array(attribute)
    if array is None:
        return None
    return Constant(Value(name, dtype_of(array), array.shape), array.nbytes, lambda: array)


def _plain_array(attribute: onnx.AttributeProto) -> Array | None:
    content = _attribute(attribute)
    if content is None or not attribute.name.startswith("value_"):
        return None
    kind = attribute.name.removeprefix("value_").rstrip("s")
    if kind == "string":
        texts = [content] if isinstance(content, str) else content
        array = np.array(texts, dtype=object).reshape(() if attribute.name == "value_string" else (-1,))
    else:
        array = np.asarray(content, dtype=np.float32 if kind == "float" else np.int64)
    array.flags.writeable = False
    return array


def _node_names(nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Unique names: the file's own; where it has none, that of the first output."""
    wanted = [
        node.name or next((name for name in node.output if name), f"{node.op_type}_{index}")
        for index, node in enumerate(nodes)
    ]
    return unique_names(wanted)


def _node(node: onnx.NodeProto, name: str, inner: Sequence[_Body]) -> Node:
    captured = tuple(dict.fromkeys(name for body in inner for name in body.captured))
    op = node.op_type if node.domain in STANDARD else f"{node.domain}::{node.op_type}"
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    return Node(
        name, op, tuple(node.input), tuple(node.output), attributes, tuple(body.graph for body in inner), captured
    )


def _attribute(attribute: onnx.AttributeProto) -> Attribute:
    """A small attribute's content; None for tensors, graphs, types and references."""
    match attribute.type:
        case 1:
            content: Attribute = attribute.f
        case 2:
            content = attribute.i
        case 3:
            content = _text(attribute.s)
        case 6:
            content = tuple(attribute.floats)
        case 7:
            content = tuple(attribute.ints)
        case 8:
            content = tuple(item.decode("utf-8", "surrogateescape") for item in attribute.strings)
        case _:
            content = None
    return content


def _text(content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _order(nodes: Sequence[Node], inputs: Sequence[Value], constants: Collection[str]) -> list[int]:
    """Indices in topological order; the file's own wherever it is one.

    Raises:
        ModelCorrupt: a value is made twice, or nodes wait for each other in a circle.
    """
    producers: dict[str, int] = dict.fromkeys([*(value.name for value in inputs), *constants], -1)
    for index, node in enumerate(nodes):
        for name in node.writes:
            if name in producers:
                raise ModelCorrupt(
                    f"node {node.name!r} makes {name!r}, which exists already.", "Export the model again."
                )
            producers[name] = index
    needs = [{producers[name] for name in node.reads if producers.get(name, -1) >= 0} for node in nodes]
    followers: list[list[int]] = [[] for _ in nodes]
    for index, sources in enumerate(needs):
        for source in sources:
            followers[source].append(index)
    missing = [len(sources) for sources in needs]
    ready = [index for index, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for follower in followers[order[-1]]:
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, follower)
    if len(order) < len(nodes):
        stuck = next(index for index, count in enumerate(missing) if count > 0)
        raise ModelCorrupt(
            f"node {nodes[stuck].name!r} waits for itself: the graph has a circle.", "Export the model again."
        )
    return order


def _all_nodes(graph: Graph) -> Iterator[tuple[Graph, Node]]:
    for node in graph.nodes:
        yield graph, node
        for body in node.subgraphs:
            yield from _all_nodes(body)


def _precision(graph: Graph) -> Precision:
    floats: Counter[Precision] = Counter()
    for owner, node in _all_nodes(graph):
        if _QUANTISED.fullmatch(node.op):
            return "i8"
        # Integers that are made, not stored, come from quantised arithmetic; stored ones are only packed weights.
        if node.op.endswith("DequantizeLinear") and node.inputs and node.inputs[0] not in owner.constants:
            return "i8"
        floats.update(_floats(owner.values[name] for name in node.writes))
    floats = floats or Counter(_floats((*graph.inputs, *graph.outputs)))
    return max(floats, key=lambda name: floats[name], default="f32")


def _floats(values: Iterable[Value]) -> Iterator[Precision]:
    return (_PRECISIONS[value.dtype] for value in values if value.dtype is not None and value.dtype in _PRECISIONS)

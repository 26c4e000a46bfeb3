"""What ONNX says about the types of values, and what its shape inference adds."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgert.errors import ModelCorrupt
from edgert.formats.onnx_tensors import MAX_BYTES, dtype_of_code, inlined, size_bytes
from edgert.graph import Kind, Value
from edgert.tensor import DType, Shape

if TYPE_CHECKING:
    import onnx

_LOG = logging.getLogger(__name__)

_SMALL_BYTES = 1 << 10
"""Constants up to this size take part in inference: shapes, axes, scales."""
_MAX_NODES = 50_000
"""Beyond this many nodes, counted with every function call expanded, inference is not worth its time."""


@dataclass(frozen=True, slots=True)
class Types:
    """Types of the values of one graph, and of the graphs inside it."""

    own: Mapping[str, onnx.TypeProto]
    """By value name."""
    bodies: tuple[Types, ...] = field(default=())
    """One a subgraph, in the order of nodes and attributes."""

    def value(self, name: str) -> Value:
        """What is known about a value; dtype and shape are None where nothing is."""
        proto = self.own.get(name)
        return Value(name, None, None) if proto is None else value_of(name, proto)


def value_of(name: str, proto: onnx.TypeProto) -> Value:
    """The value that a type describes.

    Raises:
        ModelCorrupt: its shape is absurd.
        ModelUnsupported: its element type is unknown.
    """
    kind, dtype, shape = _resolve(proto, f"value {name!r}")
    if shape is not None and math.prod(max(size, 1) if isinstance(size, int) else 1 for size in shape) > MAX_BYTES:
        raise ModelCorrupt(f"value {name!r} has an absurd shape {shape[:8]}.", "Export the model again.")
    return Value(name, dtype, shape, kind)


def _resolve(proto: onnx.TypeProto, owner: str) -> tuple[Kind, DType | None, Shape | None]:
    which = proto.WhichOneof("value")
    if which in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(proto, which)
        dtype = dtype_of_code(tensor.elem_type, owner) if tensor.elem_type else None
        shape = tuple(_size(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
        return ("tensor" if which == "tensor_type" else "sparse"), dtype, shape
    if which == "sequence_type":
        return ("sequence", *_resolve(proto.sequence_type.elem_type, owner)[1:])
    if which == "optional_type":
        return ("optional", *_resolve(proto.optional_type.elem_type, owner)[1:])
    if which == "map_type":
        return ("map", *_resolve(proto.map_type.value_type, owner)[1:])
    return "tensor", None, None


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    # Some exporters write -1 for a free dimension.
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param


def types_of(model: onnx.ModelProto, path: Path) -> Types:
    """Types of all values as far as the file says or shape inference finds; never fails for lack of them.

    Raises:
        ModelCorrupt: functions call each other in a circle.
    """
    declared = _collect(model.graph)
    node_count = expanded_nodes(model)
    if all(name in declared.own for node in model.graph.node for name in node.output if name):
        return declared
    if node_count > _MAX_NODES:
        _LOG.info("shape inference skipped: more than %d nodes", _MAX_NODES)
        return declared
    inferred = _infer(model, path)
    return declared if inferred is None else _collect(inferred.graph)


def _collect(graph: onnx.GraphProto) -> Types:
    own = {
        info.name: info.type
        for infos in (graph.value_info, graph.input, graph.output)
        for info in infos
        if info.HasField("type")
    }
    return Types(own, tuple(_collect(body) for node in graph.node for body in subgraphs(node)))


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Bodies of a control-flow node, in the file's order."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _infer(model: onnx.ModelProto, path: Path) -> onnx.ModelProto | None:
    import onnx

    stripped = _without_weights(model, path)
    try:
        # The checker refuses what inference was not written to meet.
        onnx.checker.check_model(stripped, full_check=False)
        return onnx.shape_inference.infer_shapes(stripped, check_type=False, strict_mode=False, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        _LOG.info("shape inference gave up: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
    except (RuntimeError, ValueError, MemoryError, UnicodeDecodeError) as error:  # what its C++ lets through
        _LOG.info("shape inference failed: %s", error)
    return None


def _without_weights(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A copy whose large initialisers are inputs of the same type: inference reads small ones alone."""
    import onnx

    stripped = onnx.ModelProto()
    stripped.ir_version = model.ir_version
    stripped.opset_import.extend(model.opset_import)
    stripped.functions.extend(model.functions)
    graph = stripped.graph
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, name).extend(getattr(model.graph, name))
    graph.name = model.graph.name or "graph"
    inputs = {info.name for info in graph.input}
    for tensor in model.graph.initializer:
        if size_bytes(tensor) <= _SMALL_BYTES:
            graph.initializer.append(inlined(tensor, path) if tensor.data_location == 1 else tensor)
        elif tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return stripped


def expanded_nodes(model: onnx.ModelProto) -> int:
    """Nodes of a model with every call of a model-local function expanded: inference walks them all.

    Raises:
        ModelCorrupt: functions call each other in a circle.
    """
    bodies = {(f.domain, f.name, f.overload): f for f in model.functions}
    counts: dict[tuple[str, str, str], int] = {}
    open_calls: list[tuple[str, str, str]] = []

    def count(nodes: list[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += 1 + sum(count(list(body.node)) for body in subgraphs(node))
            key = (node.domain, node.op_type, node.overload)
            if key in bodies:
                total += of_function(key)
        return total

    def of_function(key: tuple[str, str, str]) -> int:
        if key in open_calls or len(open_calls) > 64:
            raise ModelCorrupt(
                f"function {key[0]}::{key[1]} calls itself, or calls nest deeper than 64.", "Export the model again."
            )
        if key not in counts:
            open_calls.append(key)
            counts[key] = count(list(bodies[key].node))
            open_calls.pop()
        return counts[key]

    for key in bodies:
        of_function(key)
    return count(list(model.graph.node))

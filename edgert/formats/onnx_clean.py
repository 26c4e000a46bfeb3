"""Cleans an .onnx model up before it is cut: what never changes is computed, what nobody needs is gone.

Backends do this to what they prepare, but each within its own segment: a cut would keep them from it, and constants
would travel between devices. So it is done once, on the whole:

1. Nodes that depend on constants alone, or on shapes that never change, become constants (`Compute` runs them, on a
   library that runs models).
2. A BatchNormalization after a convolution of its own goes into the convolution's weights.
3. Identities and whatever leads to no output are taken out (onnx-ir's passes).

Nodes and values that stay keep their names. Quantisation is left alone: folded, a DequantizeLinear would turn integer
arithmetic into floats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgert.errors import ModelUnsupported
from edgert.formats.onnx_write import write_nodes
from edgert.graph import Graph, Node
from edgert.tensor import Array

if TYPE_CHECKING:
    import onnx

    from edgert.formats.onnx import OnnxFile

__all__ = ["Compute", "clean"]

Compute: TypeAlias = Callable[[Sequence[str], Sequence[str], Mapping[str, Array]], Mapping[str, Array]]
"""(nodes, values, given) -> the values, made by running these nodes, which read constants and `given` alone."""
_DRAW = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_FOLDED_DTYPES = frozenset(
    {"float16", "float32", "float64", "bool",
     "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
)  # fmt: skip
_MOST_GROWTH_BYTES = 16 << 20
"""What folding may add to the weights: an Expand of a constant is cheaper made anew than stored."""
_INITIALISERS_ARE_INPUTS = 4
"""Before this IR version each initialiser is listed as an input."""


@dataclass
class _Changes:
    """What is to be done to a model."""

    folded: set[str] = field(default_factory=set)
    """Names of nodes that go, since their values are constants now, or part of a convolution."""
    constants: dict[str, Array] = field(default_factory=dict)
    """New ones, by value name."""
    rewired: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    """Name of a convolution -> its inputs, and its output, once it does its normalisation too."""


def clean(source: OnnxFile, path: Path, compute: Compute) -> bool:
    """Write the cleaned-up model, which has the same inputs and outputs; False, and no file, where nothing changes.

    Args:
        source: the model.
        path: where to; external data goes to `path` + '.data'.
        compute: runs the constant part of the model.

    Raises:
        EdgertError: what `compute` raises.
        ModelUnsupported: onnx-ir's passes stumble over the model.
        OptionError: `path` cannot be written.
    """
    changes = _Changes()
    _fold_constants(source.graph, changes, compute)
    _fold_normalisations(source.graph, changes)
    model = _changed(source, changes)
    model, count = _without_the_unused(model)
    if count == len(source.proto.graph.node) and not changes.rewired:
        return False
    write_nodes(dataclasses.replace(source, proto=model), [node.name for node in source.graph.nodes], path)
    return True


def _fold_constants(graph: Graph, changes: _Changes, compute: Compute) -> None:
    shapes = _fixed_shapes(graph)
    names = _constant_nodes(graph, shapes)
    chosen = [node for node in graph.nodes if node.name in names]
    outside = [node for node in graph.nodes if node.name not in names]
    read = {name for node in outside for name in node.reads}
    wanted = [name for node in chosen for name in node.writes if name in read]
    made = {name: array for name, array in shapes.items() if name in read}
    if wanted:
        made = {**compute([node.name for node in chosen], wanted, shapes), **made}
    if sum(array.nbytes for array in made.values()) > graph.weight_bytes + _MOST_GROWTH_BYTES:
        return
    changes.folded |= names | {graph.nodes[graph.producers[name]].name for name in shapes}
    changes.constants |= {name: made[name] for name in (*wanted, *(set(shapes) & read))}


def _fixed_shapes(graph: Graph) -> dict[str, Array]:
    """What Shape nodes give, by the name of their output, where no input of the model has a free dimension.

    Where one has, a file that states a shape inside the model may state that of one case.
    """
    if any(value.shape is None or not all(isinstance(n, int) for n in value.shape) for value in graph.inputs):
        return {}
    outputs = {value.name for value in graph.outputs}
    found: dict[str, Array] = {}
    for node in graph.nodes:
        value = graph.values.get(node.inputs[0]) if node.op == "Shape" and node.inputs else None
        if value is None or value.shape is None or value.kind != "tensor" or node.writes[0] in outputs:
            continue
        start, end = (node.attributes.get(name, default) for name, default in (("start", 0), ("end", len(value.shape))))
        if isinstance(start, int) and isinstance(end, int) and all(isinstance(size, int) for size in value.shape):
            found[node.writes[0]] = np.array(value.shape[start:end], np.int64)
    return found


def _constant_nodes(graph: Graph, shapes: Mapping[str, Array]) -> set[str]:
    """Names of nodes that give the same at every run, from constants and those shapes alone."""
    known = {name for name, constant in graph.constants.items() if constant.value.kind == "tensor"}
    known = (known - graph.optional_inputs) | shapes.keys()
    outputs = {value.name for value in graph.outputs}
    found: set[str] = set()
    for node in graph.nodes:
        if _is_plain(node, graph) and known.issuperset(node.reads) and outputs.isdisjoint(node.writes):
            found.add(node.name)
            known.update(node.writes)
    return found


def _is_plain(node: Node, graph: Graph) -> bool:
    """Whether it is an op of the standard that always computes the same, of numbers that a file can hold."""
    if (
        node.subgraphs
        or "::" in node.op
        or node.op in _DRAW
        or "quantize" in node.op.lower()
        or node.op in graph.functions
    ):
        return False
    values = [graph.values.get(name) for name in node.writes]
    return all(value is not None and value.kind == "tensor" and value.dtype in _FOLDED_DTYPES for value in values)


def _fold_normalisations(graph: Graph, changes: _Changes) -> None:
    """Y = (conv(x, W) + B - mean) gamma / sqrt(var + epsilon) + beta is a convolution with W gamma / sqrt(...) too
    (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
    2018, section 3.2).
    """
    outputs = {value.name for value in graph.outputs}
    for node in graph.nodes:
        maker = graph.producers.get(node.inputs[0]) if node.op == "BatchNormalization" else None
        if maker is None or len(node.writes) != 1 or node.attributes.get("training_mode"):
            continue
        conv, between = graph.nodes[maker], node.inputs[0]
        if conv.op != "Conv" or between in outputs or len(graph.consumers[between]) != 1:
            continue
        arrays = _arrays(graph, changes, (*conv.inputs[1:], *node.inputs[1:5]))
        if arrays is None or node.attributes.get("spatial", 1) != 1:
            continue
        weight, *bias = arrays[: len(conv.inputs) - 1]
        epsilon = node.attributes.get("epsilon", 1e-5)
        folded = _folded_weights(weight, bias, arrays[-4:], epsilon) if isinstance(epsilon, float) else None
        if folded is not None:
            names = tuple(f"{node.name}/folded/{part}" for part in ("weight", "bias"))
            changes.constants |= dict(zip(names, folded, strict=True))
            changes.rewired[conv.name] = ((conv.inputs[0], *names), node.writes[0])
            changes.folded.add(node.name)


def _arrays(graph: Graph, changes: _Changes, names: Sequence[str]) -> list[Array] | None:
    """The constants of those names, all of one floating-point type; None where one is computed, or small-floated."""
    known = [
        changes.constants[name] if name in changes.constants else graph.constants[name].read()
        for name in names
        if name in changes.constants or (name in graph.constants and name not in graph.optional_inputs)
    ]
    alike = {array.dtype for array in known}
    exact = alike in ({np.dtype(np.float32)}, {np.dtype(np.float64)})
    return known if len(known) == len(names) and exact else None


def _folded_weights(
    weight: Array, bias: Sequence[Array], normalisation: Sequence[Array], epsilon: float
) -> tuple[Array, Array] | None:
    """Weight and bias of the one convolution, computed in float64; None where they are not finite, or do not fit."""
    if any(array.shape != weight.shape[:1] for array in (*bias, *normalisation)):
        return None
    gamma, beta, mean, variance = (array.astype(np.float64) for array in normalisation)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        factor = gamma / np.sqrt(variance + epsilon)
        before = bias[0].astype(np.float64) if bias else np.zeros_like(mean)
        new_weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        made = new_weight.astype(weight.dtype), ((before - mean) * factor + beta).astype(weight.dtype)
    return made if all(np.isfinite(array).all() for array in made) else None


def _changed(source: OnnxFile, changes: _Changes) -> onnx.ModelProto:
    """A copy of the model with the changes made, and with the names that its graph has."""
    import onnx

    model: onnx.ModelProto = type(source.proto)()
    model.CopyFrom(source.proto)
    # A careless file has nodes without a name or with another's; what a node writes is always its own.
    names = {output: node.name for node in source.graph.nodes for output in node.writes}
    kept = []
    for proto in model.graph.node:
        name = next((names[output] for output in proto.output if output in names), proto.name)
        if name in changes.folded:
            continue
        proto.name = name
        if name in changes.rewired:
            inputs, output = changes.rewired[name]
            del proto.input[:], proto.output[:]
            proto.input.extend(inputs)
            proto.output.append(output)
        kept.append(proto)
    copies = [type(proto).FromString(proto.SerializeToString()) for proto in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    _drop_initialisers_from_inputs(model)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in changes.constants.items()
    )
    infos = [info for info in model.graph.value_info if info.name not in changes.constants]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
    return model


def _drop_initialisers_from_inputs(model: onnx.ModelProto) -> None:
    """In an old file all of them are inputs, which new ones need not be from IR version 4 on."""
    if model.ir_version >= _INITIALISERS_ARE_INPUTS:
        return
    initialisers = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in initialisers]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = _INITIALISERS_ARE_INPUTS


def _without_the_unused(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model without identities and what leads to no output; and how many nodes it has."""
    try:
        return _passed(model)
    except Exception as error:  # the passes are another's, and the model is anybody's
        raise ModelUnsupported(
            f"onnx-ir does not tidy the model up ({type(error).__name__}: {str(error)[:200]}).",
            "Nothing needs to be done: the model works as it is.",
        ) from error


def _passed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    import onnx_ir
    from onnx_ir.passes import common

    graph = onnx_ir.from_proto(model)
    unused_functions = common.RemoveUnusedFunctionsPass()  # type: ignore[no-untyped-call]  # onnx-ir left it so
    passes = onnx_ir.passes.Sequential(
        common.IdentityEliminationPass(), common.RemoveUnusedNodesPass(), unused_functions
    )
    result = onnx_ir.to_proto(passes(graph).model)
    return result, len(result.graph.node)

"""A model as data, the same for ONNX and TFLite: `Graph`, `Node`, `Value`.

A `Graph` says what a model computes and holds no weights: a `Constant` knows its shape and size, and reads
its array from the file when asked. Made by `edgert.formats`, read by everything above.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from edgert.tensor import Array, DType, Shape, shape_text, size_bytes

Format: TypeAlias = Literal["onnx", "tflite"]
Kind: TypeAlias = Literal["tensor", "sparse", "sequence", "optional", "map"]
Attribute: TypeAlias = "int | float | str | bytes | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | None"
"""Small attributes only: tensors appear as `Constant`s, graphs as `Node.subgraphs`, anything else as None."""

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Quantization:
    """How integers stand for real numbers: real = scale * (integer - zero_point)."""

    scales: tuple[float, ...]
    """One, or one a slice along `axis`."""
    zero_points: tuple[int, ...]
    """As many as `scales`."""
    axis: int | None = None
    """Axis of a per-channel quantisation; None when per tensor."""


@dataclass(frozen=True, slots=True)
class Value:
    """What flows along one edge of the graph."""

    name: str
    """Unique in its graph."""
    dtype: DType | None
    """Element type; None when the file does not say."""
    shape: Shape | None
    """A `str` is a free dimension; None when even the rank is unknown."""
    kind: Kind = "tensor"
    """For a sequence or an optional, dtype and shape are those of its element."""
    quantization: Quantization | None = None
    """Set on quantised TFLite tensors; ONNX says it with nodes."""

    def size_bytes(self, free: int = 1) -> int | None:
        """Bytes at the given size of every free dimension; None when dtype or rank is unknown."""
        return None if self.dtype is None or self.shape is None else size_bytes(self.dtype, self.shape, free)

    def __str__(self) -> str:
        shape = "?" if self.shape is None else shape_text(self.shape)
        kind = "" if self.kind == "tensor" else f"{self.kind} of "
        return f"{self.name}: {kind}{self.dtype or '?'} {shape}"


@dataclass(frozen=True, slots=True)
class Constant:
    """A weight or other array that is part of the model."""

    value: Value
    """Its name, element type and shape (always known)."""
    size_bytes: int
    """Size in the file."""
    read: Callable[[], Array] = field(repr=False, compare=False)
    """Returns the array, read-only and memory-mapped where the file allows it."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation."""

    name: str
    """Unique in its graph (made so by the reader where the file is careless)."""
    op: str
    """ONNX: 'Conv', or 'domain::Op' outside the standard; TFLite: 'CONV_2D', or 'CUSTOM:name'."""
    inputs: tuple[str, ...]
    """Names of values, in order; '' where an optional input is absent."""
    outputs: tuple[str, ...]
    """Names of values, in order; '' where an optional output is not wanted."""
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: _EMPTY)
    """Small attributes by name."""
    subgraphs: tuple[Graph, ...] = ()
    """Bodies of If, Loop, Scan, WHILE, ..., in the file's order."""
    captured: tuple[str, ...] = ()
    """Values of the enclosing graph that the subgraphs read; they are inputs in all but syntax."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Every value that must exist before this node runs."""
        return tuple(name for name in (*self.inputs, *self.captured) if name)

    @property
    def writes(self) -> tuple[str, ...]:
        """Every value that this node makes."""
        return tuple(name for name in self.outputs if name)


@dataclass(frozen=True, slots=True)
class Signature:
    """A named entry point of a TFLite model."""

    inputs: Mapping[str, str]
    """Public name -> value name."""
    outputs: Mapping[str, str]
    """Public name -> value name."""
    subgraph: int = 0
    """Index of the TFLite subgraph that it runs."""


@dataclass(frozen=True)
class Graph:
    """A whole model, or the body of a control-flow node. Nodes are in topological order."""

    format: Format
    name: str
    nodes: tuple[Node, ...]
    """Each reads only inputs, constants, captured values and what earlier nodes write."""
    inputs: tuple[Value, ...]
    """What a caller passes, in order; never a constant."""
    outputs: tuple[Value, ...]
    """What a caller gets, in order."""
    values: Mapping[str, Value]
    """Every value by name: inputs, constants and intermediates."""
    constants: Mapping[str, Constant]
    """By value name."""
    optional_inputs: frozenset[str] = frozenset()
    """Inputs with a default in the file (ONNX initialisers that are also inputs). They are constants here: backends
    fold them into their programs, where nothing can replace them."""
    signatures: Mapping[str, Signature] = field(default_factory=lambda: _EMPTY)
    """TFLite only."""
    opsets: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    """ONNX only: domain ('' for the standard) -> version."""
    functions: tuple[str, ...] = ()
    """ONNX only: model-local functions, as 'domain::name'."""
    variables: tuple[str, ...] = ()
    """TFLite only: values that keep state between runs."""
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    """ONNX metadata_props, TFLite description."""

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """Value name -> index of the node that writes it."""
        return {name: index for index, node in enumerate(self.nodes) for name in node.writes}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[int, ...]]:
        """Value name -> indices of the nodes that read it."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.reads):
                found.setdefault(name, []).append(index)
        return {name: tuple(indices) for name, indices in found.items()}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants, subgraphs included."""
        inner = sum(body.weight_bytes for node in self.nodes for body in node.subgraphs)
        return sum(constant.size_bytes for constant in self.constants.values()) + inner

    def is_convex(self, nodes: frozenset[int]) -> bool:
        """Whether no path leaves the set of node indices and comes back."""
        tainted: set[str] = set()  # values that depend on the set through a node outside it
        for index, node in enumerate(self.nodes):
            if index in nodes:
                if any(name in tainted for name in node.reads):
                    return False
            elif any(
                name in tainted or (name in self.producers and self.producers[name] in nodes) for name in node.reads
            ):
                tainted.update(node.writes)
        return True

    def boundary(self, nodes: frozenset[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Values that the set reads from outside (no constants, no state), and its own that are needed outside."""
        made = {name for index in nodes for name in self.nodes[index].writes}
        reads = [name for index in sorted(nodes) for name in self.nodes[index].reads]
        inside = made | self.constants.keys() | set(self.variables)
        inputs = [name for name in dict.fromkeys(reads) if name not in inside]
        wanted = {value.name for value in self.outputs}
        outputs = [
            name
            for index in sorted(nodes)
            for name in self.nodes[index].writes
            if name in wanted or any(reader not in nodes for reader in self.consumers.get(name, ()))
        ]
        return tuple(inputs), tuple(outputs)

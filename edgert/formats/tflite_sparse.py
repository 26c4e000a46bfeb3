"""Sparse constants of a .tflite: TFLite's traversal of dense and compressed levels, read into dense arrays.

A tensor of rank n, some of whose k axes are cut into blocks, is a tree of n + k levels in the order of
`traversal_order`: a dense level has every child, a compressed one (CSR) those that its indices name, from
`segments[parent]` up to `segments[parent + 1]`. The values are the leaves, left to right; what has no leaf is zero.
The format is that of the schema's table SparsityParameters; the blocks are those of the TACO tensor compiler
(Kjolstad et al., OOPSLA 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from edgert.errors import ModelCorrupt
from edgert.formats.flat import Reader, schema
from edgert.formats.tflite_tensors import read_constant
from edgert.graph import Value
from edgert.tensor import Array, size_bytes

_DENSE = 0
"""DimensionType of the schema; 1 is compressed."""
_MOST_BYTES = 1 << 32
"""Of a dense array: a file, which ends at 2 GB, may claim any shape for its few values."""

Failure: TypeAlias = Callable[[str], ModelCorrupt]


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the tree."""

    size: int
    """Children of each parent; of a compressed level 0."""
    segments: Array
    """Where each parent's children begin in `indices`, and one more; of a dense level empty."""
    indices: Array
    """Place of each child along its axis; of a dense level empty."""


@dataclass(frozen=True, slots=True)
class Sparsity:
    """How a constant's values are laid out."""

    order: tuple[int, ...]
    """Axis of each level: below the tensor's rank one of its own, from there on the block of `blocks[axis - rank]`."""
    blocks: tuple[int, ...]
    """Axes that are cut into blocks, rising."""
    levels: tuple[Level, ...]
    """As many as `order`."""


def read_sparsity(reader: Reader, tensor: Any, name: str) -> Sparsity | None:
    """A tensor's sparsity; None for a dense one.

    Raises:
        ModelCorrupt: its parts do not fit each other or the tensor's rank.
    """
    found = tensor.Sparsity()
    if found is None:
        return None
    levels = tuple(_level(reader, item) for item in reader.tables(found, "DimMetadata"))
    sparsity = Sparsity(reader.integers(found, "TraversalOrder"), reader.integers(found, "BlockMap"), levels)
    rank = int(tensor.ShapeLength())
    if (
        sorted(sparsity.order) != list(range(rank + len(sparsity.blocks)))
        or len(levels) != len(sparsity.order)
        or sorted(set(sparsity.blocks)) != list(sparsity.blocks)
        or any(not 0 <= axis < rank for axis in sparsity.blocks)
        or any(axis >= rank for axis in sparsity.order[:rank])
    ):
        raise reader.corrupt(f"constant {name!r} has a sparsity that does not fit its {rank} axes")
    return sparsity


def read_sparse(content: memoryview, value: Value, sparsity: Sparsity) -> Array:
    """A sparse constant as a dense array, read-only.

    Raises:
        ModelCorrupt: the values, the tree and the shape do not fit each other.
    """

    def corrupt(what: str) -> ModelCorrupt:
        return ModelCorrupt(f"sparse constant {value.name!r} {what}.", "Export the model again.")

    shape = tuple(size for size in value.shape or () if isinstance(size, int))
    dtype = value.dtype or "uint8"
    if dtype == "string":
        raise corrupt("holds text")
    if size_bytes(dtype, shape) > _MOST_BYTES:
        raise corrupt(f"of shape {shape} would take more than {_MOST_BYTES >> 30} GiB")
    places = _leaves(sparsity, 8 * len(content), corrupt)
    count = len(places[0]) if places else 1
    if size_bytes(dtype, (count,)) != len(content):
        raise corrupt(f"has {count} values and {len(content)} bytes")
    values = read_constant(content, Value(value.name, dtype, (count,)))
    dense = np.zeros(shape, values.dtype)
    dense[_axes(sparsity, places, shape, corrupt)] = values
    dense.flags.writeable = False
    return dense


def _level(reader: Reader, item: Any) -> Level:
    if int(item.Format()) == _DENSE:
        none = np.empty(0, np.int64)
        return Level(max(0, int(item.DenseSize())), none, none)
    parts = [_vector(reader, item, part) for part in ("ArraySegments", "ArrayIndices")]
    return Level(0, parts[0], parts[1])


def _vector(reader: Reader, item: Any, part: str) -> Array:
    """A union of vectors of 32, 16 or 8 bits."""
    generated = schema()
    kinds = {number: name for name, number in vars(generated.SparseIndexVector).items() if isinstance(number, int)}
    kind, table = kinds.get(int(getattr(item, f"{part}Type")())), getattr(item, part)()
    if kind in (None, "NONE") or table is None:
        raise reader.corrupt(f"a compressed level of a sparse constant has no {part}")
    vector = getattr(generated, str(kind))()
    vector.Init(table.Bytes, table.Pos)
    return reader.numbers(vector, "Values").astype(np.int64)


def _leaves(sparsity: Sparsity, most: int, corrupt: Failure) -> list[Array]:
    """For each level the place of every leaf along it."""
    # However many nodes a level has, some later level names each of them, or each has a value.
    most = max(most, *(len(level.segments) for level in sparsity.levels), 1)
    places: list[Array] = []
    nodes = np.zeros(1, np.int64)
    for level in sparsity.levels:
        if level.size or not len(level.segments):
            if len(nodes) * level.size > most:
                raise corrupt("claims more values than it has")
            parents = np.repeat(np.arange(len(nodes)), level.size)
            here = np.tile(np.arange(level.size), len(nodes))
            nodes = nodes[parents] * level.size + here
        else:
            parents, nodes, here = _children(level, nodes, corrupt)
        places = [*(known[parents] for known in places), here]
    return places


def _children(level: Level, nodes: Array, corrupt: Failure) -> tuple[Array, Array, Array]:
    """Of a compressed level: which parent (by its place in `nodes`) each child has, its number, its index."""
    ends = level.segments
    if len(ends) <= int(nodes.max(initial=-1)) + 1 or (np.diff(ends) < 0).any() or ends[0] < 0:
        raise corrupt("has segments that do not fit their level")
    if ends[-1] > len(level.indices):
        raise corrupt("has segments beyond its indices")
    counts = ends[nodes + 1] - ends[nodes]
    parents = np.repeat(np.arange(len(nodes)), counts)
    first = np.repeat(ends[nodes] - (np.cumsum(counts) - counts), counts)
    children = np.arange(len(parents)) + first
    return parents, children, level.indices[children]


def _axes(sparsity: Sparsity, places: Sequence[Array], shape: tuple[int, ...], corrupt: Failure) -> tuple[Array, ...]:
    """Index of every leaf along each axis of the tensor: its own level's, then, where it is cut, within the block."""
    rank = len(shape)
    level_of = {axis: number for number, axis in enumerate(sparsity.order)}
    found = [places[level_of[axis]] for axis in range(rank)]
    for number, axis in enumerate(sparsity.blocks):
        block = level_of[rank + number]
        size = sparsity.levels[block].size
        if not size or shape[axis] % size:
            raise corrupt(f"has blocks of {size} along an axis of {shape[axis]}")
        # LiteRT looks the size up by the block's place in the order, which is another one's when three or more rotate.
        if sparsity.levels[sparsity.order[rank + number]].size != size:
            raise corrupt("has blocks of different sizes in an order that LiteRT takes for another")
        found[axis] = found[axis] * size + places[block]
    for axis, (indices, size) in enumerate(zip(found, shape, strict=True)):
        if ((indices < 0) | (indices >= size)).any():
            raise corrupt(f"has an index beyond axis {axis}")
    return tuple(found)

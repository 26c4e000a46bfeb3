"""Inputs to measure and check a model on, made up so that they mean something to its graph.

Random numbers are refused, or answered with nonsense, by a graph that takes an index into a table, a mask, a length
or a shape. `synthesise` looks at what reads each input and draws values that fit: see `rules` for what each
operation asks, `scope` for how an input is followed to its readers, `sizes` for the sizes of free dimensions.
Everything is a pure function of the graph and the seed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgert.errors import OptionError
from edgert.graph import Graph, Value
from edgert.samples.controls import controls
from edgert.samples.draw import draw
from edgert.samples.rules import SEQUENCE_LENGTH, fact_of, is_opened, is_sequence, map_of
from edgert.samples.scope import Scope
from edgert.samples.sizes import resolve
from edgert.tensor import Data, dtype_of, shape_text, size_bytes

__all__ = ["controls", "digest_of", "synthesise"]

_LARGEST_BYTES = 1 << 32
"""Of one input: no model takes more at once, a damaged file may say anything."""


def synthesise(
    graph: Graph, *, seed: int = 0, sizes: Mapping[str, int] | None = None, count: int = 1, corners: bool = False
) -> list[dict[str, Data]]:
    """Inputs for `graph`, as `Model.run` takes them: name -> array (list, mapping).

    Inputs with a default in the file (`graph.optional_inputs`) are left out. Each input has random numbers of its own,
    so that it does not depend on its neighbours.

    Args:
        graph: the model.
        seed: chooses the numbers.
        sizes: name of a free dimension -> its size; the others get a usual size (batch 1, a sequence 16, ...) that fits
            the operations which read them.
        count: how many sets; all have the same shapes.
        corners: draw the last set from where kernels differ that agree elsewhere: ties, zeros, halves, ends of ranges,
            what a cast has to saturate, a row of a mask that hides everything.

    Raises:
        OptionError: `count` or a size is below one; an input's rank or element type is unknown and nothing tells it; an
            input would take more than 4 GiB.
    """
    _check(graph, sizes or {}, count)
    shapes = resolve(graph, sizes or {})
    scope = Scope(graph, shapes)
    wanted = [value for value in graph.inputs if value.name not in graph.optional_inputs]
    return [
        {value.name: _one(scope, value, (seed, index), corners and index == count - 1) for value in wanted}
        for index in range(count)
    ]


def digest_of(samples: Sequence[Mapping[str, Data]]) -> str:
    """SHA-256, in hex, over names, element types, shapes and contents; independent of the order of names in a set."""
    state = hashlib.sha256()
    for sample in samples:
        state.update(b"set\0")
        for name in sorted(sample):
            state.update(name.encode() + b"\0")
            _feed(state, sample[name])
    return state.hexdigest()


def _check(graph: Graph, sizes: Mapping[str, int], count: int) -> None:
    if count < 1:
        raise OptionError(f"count is {count}.", "Ask for at least one set of inputs.")
    for name, size in sizes.items():
        if size < 1:
            raise OptionError(f"size of dimension {name!r} is {size}.", "Give a size of at least one.")
    for value in graph.inputs:
        if value.dtype is None and value.kind != "map" and value.name not in graph.optional_inputs:
            raise OptionError(f"the element type of input {value.name!r} is unknown.", "Pass samples= of your own.")


def _one(scope: Scope, value: Value, seed: tuple[int, int], corners: bool) -> Data:
    """The data of one input; `seed` ends with the number of its set."""
    rng = np.random.default_rng([*seed, zlib.crc32(value.name.encode())])
    if value.kind == "map":
        return map_of(scope, value, rng)
    if value.kind == "optional" and not is_opened(scope, value):
        return None
    sequence = is_sequence(scope, value)
    shape = scope.shape(value.name)
    if shape is None and sequence:
        shape = (2,)  # elements of a sequence may have any shape
    if shape is None:
        raise OptionError(f"the rank of input {value.name!r} is unknown and no operation tells it.", "Pass samples=.")
    if size_bytes(value.dtype or "float32", tuple(size or 1 for size in shape)) > _LARGEST_BYTES:
        raise OptionError(
            f"input {value.name!r} of shape {shape_text(tuple(size or 1 for size in shape))} is too large to make up.",
            "Give smaller sizes to its free dimensions, or pass samples= of your own.",
        )
    fact = fact_of(scope, value)
    if sequence:
        return [draw(value, shape, fact, rng, corners=corners) for _ in range(SEQUENCE_LENGTH)]
    return draw(value, shape, fact, rng, corners=corners)


def _feed(state: Any, data: Data) -> None:
    if data is None:
        state.update(b"none\0")
    elif isinstance(data, list):
        state.update(f"list {len(data)}\0".encode())
        for item in data:
            _feed(state, item)
    elif isinstance(data, Mapping):
        state.update(f"map {len(data)}\0".encode())
        for key in sorted(data, key=repr):
            state.update(repr(key).encode() + b"\0")
            _feed(state, np.asarray(data[key]))
    else:
        state.update(f"{dtype_of(data)} {data.shape}\0".encode())
        if dtype_of(data) == "string":
            for text in data.ravel().tolist():
                state.update((text if isinstance(text, bytes) else str(text).encode()) + b"\0")
        else:
            state.update(np.ascontiguousarray(data).tobytes())

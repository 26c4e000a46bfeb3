"""Sizes for the free dimensions of a graph: usual ones by name and place, then others until all nodes can take them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgert.graph import Graph, Value
from edgert.samples.scope import KnownShape
from edgert.samples.shapes import forward

_BY_NAME: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"batch|^bs?$|^n$", re.IGNORECASE), 1),
    (re.compile(r"seq|len|time|step|token|frame|past|^t$|^s$|^l$", re.IGNORECASE), 16),
    (re.compile(r"height|width|^h$|^w$", re.IGNORECASE), 64),
    (re.compile(r"channel|^c$", re.IGNORECASE), 3),
)
"""Usual sizes by the name of a free dimension; the first that matches counts."""
_COMMON = (*range(1, 17), 20, 24, 32, 64, 96, 128, 160, 192, 224, 227, 256, 288, 299, 300, 320, 384, 416, 448,
           512, 600, 640, 768, 1024)  # fmt: skip
"""Sizes to try where the usual one does not fit."""
_NODE_VISITS = 200_000
"""How many nodes may be looked at in the search: about two seconds."""

Names = dict[str, int]


def resolve(graph: Graph, sizes: Mapping[str, int]) -> dict[str, KnownShape]:
    """Shape of every value whose rank is known: free dimensions of inputs get sizes, others where they follow.

    Ensures that a name has one size everywhere, and `sizes` wins over everything.
    """
    chosen = {**_usual(graph), **sizes}
    shapes, conflicts = forward(graph, _given(graph, chosen), allowed=len(graph.nodes))
    if not conflicts:
        return shapes
    free = [name for name in _usual(graph) if name not in sizes]
    chosen = _search(graph, chosen, free, conflicts)
    return forward(graph, _given(graph, chosen), allowed=len(graph.nodes))[0]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A free dimension of an input."""

    value: Value
    axis: int

    @property
    def name(self) -> str:
        """As in the file; one of its own where the file gives none."""
        assert self.value.shape is not None, "only made for inputs of known rank"
        return str(self.value.shape[self.axis]) or f"{self.value.name}[{self.axis}]"

    def usual(self) -> int:
        """A size for a dimension of which only name and place are known."""
        for pattern, size in _BY_NAME:
            if self.value.shape is not None and self.value.shape[self.axis] and pattern.search(self.name):
                return size
        rank = len(self.value.shape or ())
        if rank == 4 and self.axis > 0:  # an image; its channels are free only where they come first
            return 3 if self.axis == 1 and (self.value.shape or ())[3] not in (1, 3, 4) else 64
        if rank == 2 and self.axis == 1 and "int" in (self.value.dtype or ""):  # tokens, whatever an exporter calls it
            return 16
        return 16 if rank in (3, 5) and self.axis == rank - 2 else 1


def _free(graph: Graph) -> Iterator[_Axis]:
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, str):
                yield _Axis(value, axis)


def _usual(graph: Graph) -> Names:
    """Names that stand alone -> usual sizes; sums such as 'past + sequence' follow from their parts."""
    found: Names = {}
    for axis in _free(graph):
        for part in _parts(axis.name):
            if not part.isdecimal():
                found.setdefault(part, axis.usual() if part == axis.name else _by_name(part))
    return found


def _by_name(name: str) -> int:
    return next((size for pattern, size in _BY_NAME if pattern.search(name)), 1)


def _parts(name: str) -> list[str]:
    parts = [part.strip() for part in name.split("+")]
    return parts if all(parts) else [name]


def _given(graph: Graph, chosen: Mapping[str, int]) -> dict[str, KnownShape]:
    """Shapes of the inputs at these sizes."""
    names = {(axis.value.name, axis.axis): axis.name for axis in _free(graph)}
    return {
        value.name: tuple(
            size if isinstance(size, int) else _size(names[value.name, axis], chosen)
            for axis, size in enumerate(value.shape)
        )
        for value in graph.inputs
        if value.shape is not None
    }


def _size(name: str, chosen: Mapping[str, int]) -> int:
    if name in chosen:  # also a sum that the caller named as a whole
        return chosen[name]
    return sum(int(part) if part.isdecimal() else chosen[part] for part in _parts(name))


def _search(graph: Graph, chosen: Names, free: list[str], conflicts: int) -> Names:
    """Sizes with the fewest conflicts that changing one name at a time finds."""
    weights = {size for constant in graph.constants.values() for size in constant.value.shape or () if size != ""}
    tries = dict.fromkeys((*_COMMON, *sorted(int(size) for size in weights)[:64]))
    visits = 0
    for _ in range(3):
        before = conflicts
        for name in free:
            for size in (*dict.fromkeys(chosen.values()), *tries):
                if not conflicts or visits > _NODE_VISITS:
                    return chosen
                if size == chosen[name]:
                    continue
                visits += len(graph.nodes)
                tried = {**chosen, name: size}
                found = forward(graph, _given(graph, tried), allowed=conflicts - 1)[1]
                if found < conflicts:
                    chosen, conflicts = tried, found
        if conflicts == before:
            break
    return chosen

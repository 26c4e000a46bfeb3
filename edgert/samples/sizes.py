"""Sizes for the free dimensions of a graph."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgert.graph import Graph
from edgert.samples.scope import KnownShape

_BY_NAME: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"batch|^bs?$|^n$", re.IGNORECASE), 1),
    (re.compile(r"seq|len|time|step|token|frame|^t$|^s$|^l$", re.IGNORECASE), 16),
    (re.compile(r"height|width|^h$|^w$", re.IGNORECASE), 64),
    (re.compile(r"channel|^c$", re.IGNORECASE), 3),
)
"""Usual sizes by the name of a free dimension; the first that matches counts."""


def resolve(graph: Graph, sizes: Mapping[str, int]) -> dict[str, KnownShape]:
    """Shape of every value whose rank is known: free dimensions of inputs get sizes, others where they follow."""
    chosen = dict(sizes)
    shapes: dict[str, KnownShape] = {}
    for value in graph.inputs:
        if value.shape is not None:
            shapes[value.name] = tuple(_size(size, chosen) for size in value.shape)
    for value in graph.values.values():
        if value.shape is not None and value.name not in shapes:
            shapes[value.name] = tuple(
                size if isinstance(size, int) else _expression(size, chosen) for size in value.shape
            )
    return shapes


def _size(size: int | str, chosen: dict[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size == "":
        return 1
    found = _expression(size, chosen)
    if found is None:
        found = _compound(size, chosen)
        chosen[size] = found
    return found


def _compound(name: str, chosen: dict[str, int]) -> int:
    """A size for a name not seen before; 'past + sequence' is the sum of its parts."""
    parts = [part.strip() for part in name.split("+")]
    if len(parts) > 1 and all(parts):
        return sum(_size(int(part) if part.isdecimal() else part, chosen) for part in parts)
    return next((size for pattern, size in _BY_NAME if pattern.search(name)), 1)


def _expression(name: str, chosen: Mapping[str, int]) -> int | None:
    """The size of a name that is chosen already, or a sum of such; None otherwise."""
    if name in chosen:
        return chosen[name]
    parts = [part.strip() for part in name.split("+")]
    found = [int(part) if part.isdecimal() else chosen.get(part) for part in parts]
    return sum(size for size in found if size is not None) if all(size is not None for size in found) else None

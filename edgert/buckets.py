"""Shape buckets: which requests to a model with free dimensions are alike enough to share a plan.

What is fastest at batch 1 may be slowest at batch 32, so a plan holds for the sizes that it was measured at. Measuring
every size would take for ever, and sizes near each other cost alike: a bucket holds, for each free axis, the sizes
up to a power of two and beyond half of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from edgert.graph import Value
from edgert.tensor import Data

__all__ = ["Axes", "Bucket", "Shapes", "bucket_of", "free_axes", "grouped", "shapes_of", "text_of"]

Axes: TypeAlias = tuple[tuple[str, int], ...]
"""Names of inputs, each with the number of an axis that is free."""
Bucket: TypeAlias = tuple[int, ...]
"""For each free axis, the power of two that its size does not exceed; 0 where it is empty or absent."""
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Input -> shape."""


def free_axes(inputs: Sequence[Value]) -> Axes:
    """The axes of tensors whose size a request decides."""
    return tuple(
        (value.name, axis)
        for value in inputs
        if value.kind == "tensor"
        for axis, size in enumerate(value.shape or ())
        if isinstance(size, str)
    )


def bucket_of(axes: Axes, shapes: Shapes) -> Bucket:
    """Where a request of these shapes belongs."""
    return tuple(_ceiling(shapes[name][axis]) if name in shapes else 0 for name, axis in axes)


def shapes_of(feed: Mapping[str, Data]) -> dict[str, tuple[int, ...]]:
    """Shapes of a request's tensors."""
    return {name: array.shape for name, array in feed.items() if isinstance(array, np.ndarray)}


def grouped(samples: Sequence[Mapping[str, Data]]) -> list[list[Mapping[str, Data]]]:
    """The samples of each bucket together, in the order of their first."""
    found: dict[object, list[Mapping[str, Data]]] = {}
    for sample in samples:
        # A fixed axis has one size everywhere, so that the free ones need not be known here.
        shapes = shapes_of(sample)
        key = tuple((name, *map(_ceiling, shapes[name])) for name in sorted(shapes))
        found.setdefault(key, []).append(sample)
    return list(found.values())


def text_of(axes: Axes, shapes: Shapes) -> str:
    """The shapes of the inputs that have free axes, for people: 'x 1x16, mask 1x16'."""
    names = dict.fromkeys(name for name, _ in axes)
    return ", ".join(f"{name} {'x'.join(map(str, shapes[name]))}" for name in names if name in shapes)


def _ceiling(size: int) -> int:
    return 1 << (size - 1).bit_length() if size > 0 else 0

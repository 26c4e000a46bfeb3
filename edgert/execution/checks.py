"""What a segment gave, held against what it must give: names, element types, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgert.errors import Garbage
from edgert.graph import Value
from edgert.tensor import Data, dtype_of


def check_values(who: str, values: Mapping[str, Data], declared: Sequence[Value], *, sizes: bool) -> None:
    """Refuse what cannot be an answer.

    Args:
        who: for the message: which executor, which segment.
        values: what came.
        declared: what should have come.
        sizes: whether fixed sizes of axes are compared too. Models in the wild declare sizes that no library keeps
            to, so only those are compared that an answer was seen to keep.

    Raises:
        Garbage: a name is missing, or an array has another element type or shape.
    """
    for value in declared:
        if value.name not in values:
            raise Garbage(f"{who}: value {value.name!r} is missing.", "Look at `edgert probe --refresh`.")
        array = values[value.name]
        if not isinstance(array, np.ndarray):
            if value.kind == "tensor" and array is not None:
                raise Garbage(f"{who}: value {value.name!r} is no array.", "Look at `edgert probe --refresh`.")
            continue
        if value.dtype is not None and dtype_of(array) != value.dtype:
            raise Garbage(
                f"{who}: value {value.name!r} is of {dtype_of(array)}, not {value.dtype}.",
                "Look at `edgert probe --refresh`.",
            )
        wrong = _wrong_shape(array.shape, value, sizes=sizes)
        if wrong:
            raise Garbage(f"{who}: value {value.name!r} has {wrong}.", "Look at `edgert probe --refresh`.")


def _wrong_shape(got: tuple[int, ...], value: Value, *, sizes: bool) -> str:
    if value.shape is None:
        return ""
    if len(got) != len(value.shape):
        return f"shape {got}, which has not {len(value.shape)} axes"
    if sizes and any(isinstance(want, int) and want != have for have, want in zip(got, value.shape, strict=True)):
        return f"shape {got}, not {value.shape}"
    return ""

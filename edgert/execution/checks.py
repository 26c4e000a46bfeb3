"""What a segment gave, held against what it must give: names, element types, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgert.errors import Garbage
from edgert.graph import Value
from edgert.tensor import Data, dtype_of

_REMEDY = "Look at `edgert probe --refresh`."


def check_values(
    who: str, values: Mapping[str, Data], declared: Sequence[Value], *, sizes: bool, optional: bool = False
) -> None:
    """Refuse what cannot be an answer.

    Args:
        who: for the message: which executor, which segment.
        values: what came.
        declared: what should have come.
        sizes: whether fixed sizes of axes are compared too. Models in the wild declare sizes that no library keeps
            to, so only those are compared that an answer was seen to keep.
        optional: whether names may be missing.

    Raises:
        Garbage: a name is missing, or an array has another element type or shape; `value` is its name.
    """
    for value in declared:
        wrong = _wrong(values[value.name], value, sizes=sizes) if value.name in values else "is missing"
        if wrong and not (optional and value.name not in values):
            raise Garbage(f"{who}: value {value.name!r} {wrong}.", _REMEDY, value=value.name)


def _wrong(data: Data, value: Value, *, sizes: bool) -> str:
    if not isinstance(data, np.ndarray):
        return "is no array" if value.kind == "tensor" and data is not None else ""
    if value.dtype is not None and dtype_of(data) != value.dtype:
        return f"is of {dtype_of(data)}, not {value.dtype}"
    return _wrong_shape(data.shape, value, sizes=sizes)


def _wrong_shape(got: tuple[int, ...], value: Value, *, sizes: bool) -> str:
    if value.shape is None:
        return ""
    if len(got) != len(value.shape):
        return f"has shape {got}, not {len(value.shape)} axes"
    if sizes and any(isinstance(want, int) and want != have for have, want in zip(got, value.shape, strict=True)):
        return f"has shape {got}, not {value.shape}"
    return ""

"""Element types, shapes, and the arrays that carry values.

A value that flows through a model is a `Data`: a numpy array; for ONNX also a list (sequence), `None`
(an empty optional) or a mapping. Strings are object arrays of `str`. Element types that numpy lacks
(bfloat16, the 8-, 4- and 2-bit types) come from `ml_dtypes`, imported when first needed: a small board
without that package can still run everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from edgert.errors import MissingPackage, OptionError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""One tensor. C-contiguous unless said otherwise; strings as dtype object."""
Data: TypeAlias = "Array | list[Data] | Mapping[Any, Any] | None"
"""What one input or output of a model holds."""
Shape: TypeAlias = tuple[int | str, ...]
"""One entry an axis: a size, or the name of a free dimension ('' when it has none)."""
DType: TypeAlias = str
"""Name of an element type: numpy's or ml_dtypes' own name, or 'string'. One of `BITS`."""

BITS: Mapping[DType, int] = {  # width of one element in bits; 'string' has none and counts as a pointer
    "bool": 8, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "uint32": 32, "int64": 64, "uint64": 64,
    "float16": 16, "float32": 32, "float64": 64, "complex64": 64, "complex128": 128, "bfloat16": 16,
    "float8_e4m3fn": 8, "float8_e4m3fnuz": 8, "float8_e5m2": 8, "float8_e5m2fnuz": 8, "float8_e8m0fnu": 8,
    "float6_e2m3fn": 6, "float6_e3m2fn": 6, "float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2,
    "string": 64,
}  # fmt: skip

FLOATS = frozenset(name for name in BITS if "float" in name)
INTEGERS = frozenset(name for name in BITS if "int" in name)
_EXTENDED = frozenset(
    name for name, bits in BITS.items() if bits < 8 or name.startswith(("bfloat", "float8", "float4"))
)


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy dtype that holds `dtype` (object for 'string').

    Raises:
        OptionError: there is no such element type.
        MissingPackage: it needs ml_dtypes, which is not installed.
    """
    if dtype not in BITS:
        raise OptionError(f"element type {dtype!r} is unknown.", f"Known: {', '.join(BITS)}.")
    if dtype == "string":
        return np.dtype(object)
    if dtype not in _EXTENDED:
        return np.dtype(dtype)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingPackage(
            f"element type {dtype} needs the package ml_dtypes ({error}).",
            "pip install ml-dtypes",
            package="ml-dtypes",
        ) from error
    extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype))
    return extended


def dtype_of(array: Array) -> DType:
    """The element type of an array; any text or object array counts as 'string'."""
    return "string" if array.dtype.kind in "OUST" else array.dtype.name


def size_bytes(dtype: DType, shape: Shape, free: int = 1) -> int:
    """Bytes of a tensor, packed as in a model file; each free dimension counts as `free`."""
    count = 1
    for size in shape:
        count *= size if isinstance(size, int) else free
    return (count * BITS[dtype] + 7) // 8


def shape_text(shape: Shape) -> str:
    """A shape for people: '1x3x224x224', 'Nx10', 'scalar'."""
    return "x".join(str(size) if size != "" else "?" for size in shape) or "scalar"


def from_foreign(thing: Any) -> Array:
    """An array from a list, a scalar, a numpy array or anything with `__dlpack__`; no copy where it can be avoided."""
    if isinstance(thing, np.ndarray):
        return thing
    if not hasattr(thing, "__dlpack__") or isinstance(thing, np.generic):
        return np.asarray(thing)
    try:
        return np.from_dlpack(thing)
    except (RuntimeError, BufferError):  # numpy knows no bfloat16; which of the two it says depends on its version
        from edgert.dlpack import bfloat16_bits

        bits = bfloat16_bits(thing)
        if bits is None:
            raise
        return bits.view(numpy_dtype("bfloat16"))

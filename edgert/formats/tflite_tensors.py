"""Arrays of a .tflite file's constants, on the file's own memory where numpy has the element type."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from edgert.formats.flat import trusting
from edgert.graph import Value
from edgert.tensor import BITS, Array, DType, numpy_dtype


def read_constant(content: memoryview, value: Value) -> Array:
    """A dense constant's array, read-only (for sparse ones see `tflite_sparse`).

    Raises:
        ModelCorrupt: its strings are packed wrongly.
    """
    shape = tuple(size for size in value.shape or () if isinstance(size, int))
    dtype = value.dtype or "uint8"
    if dtype == "string":
        return _strings(content, shape)
    if BITS[dtype] < 8:
        return _unpacked(content, dtype, shape)
    array = np.frombuffer(content, numpy_dtype(dtype)).reshape(shape)
    array.flags.writeable = False
    return array


def _strings(content: memoryview, shape: tuple[int, ...]) -> Array:
    """TFLite's packing: count, then count + 1 offsets (int32), then the bytes."""
    with trusting(Path("string tensor")):
        count = int(np.frombuffer(content, "<i4", 1)[0]) if len(content) else 0
        ends = np.frombuffer(content, "<i4", count + 1, 4).tolist() if count else [0]
        texts = [bytes(content[a:b]).decode("utf-8", "surrogateescape") for a, b in pairwise(ends)]
        array = np.array(texts, dtype=object).reshape(shape)
    array.flags.writeable = False
    return array


def _unpacked(content: memoryview, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Elements of less than a byte, the first in the lowest bits."""
    bits = BITS[dtype]
    raw = np.frombuffer(content, np.uint8)
    parts = np.stack([(raw >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], axis=-1).reshape(-1)
    count = int(np.prod(shape, dtype=np.int64))
    plain = parts[:count].astype(np.int8)
    if not dtype.startswith("u"):
        plain = (plain ^ (1 << (bits - 1))) - (1 << (bits - 1))  # sign extension
    array = plain.astype(numpy_dtype(dtype)).reshape(shape)
    array.flags.writeable = False
    return array

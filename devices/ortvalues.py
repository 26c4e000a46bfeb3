"""ONNX Runtime's values of element types that numpy lacks: bfloat16, float8, and the 4- and 2-bit types.

They go in and out as the raw bytes of an `OrtValue`; types below 8 bits are packed, the first element in the low
bits.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from edgert.devices.words import failed
from edgert.profile import Target
from edgert.tensor import BITS, Array, Data, DType, numpy_dtype

_TYPES: Mapping[str, tuple[DType, int]] = {  # ONNX Runtime's name -> our name, number in ONNX's TensorProto.DataType
    "bfloat16": ("bfloat16", 16),
    "float8e4m3fn": ("float8_e4m3fn", 17),
    "float8e4m3fnuz": ("float8_e4m3fnuz", 18),
    "float8e5m2": ("float8_e5m2", 19),
    "float8e5m2fnuz": ("float8_e5m2fnuz", 20),
    "uint4": ("uint4", 21),
    "int4": ("int4", 22),
    "float4e2m1": ("float4_e2m1fn", 23),
    "float8e8m0": ("float8_e8m0fnu", 24),
    "uint2": ("uint2", 25),
    "int2": ("int2", 26),
}
_NUMBERS = dict(_TYPES.values())


def needed(session: Any) -> bool:
    """Whether some input or output of the session has a type that numpy lacks."""
    return any(_element(value.type) in _TYPES for value in (*session.get_inputs(), *session.get_outputs()))


class Extended:
    """A session with such values; slower than plain by a copy of each."""

    def __init__(self, session: Any, names: list[str], target: Target, ran_on: Mapping[str, int]) -> None:
        import onnxruntime

        self.ran_on = ran_on
        self._session: Any = session
        self._values: Any = onnxruntime.OrtValue
        self._names = names
        self._target = target
        self._plain_outputs = not any(_element(value.type) in _TYPES for value in session.get_outputs())

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        try:
            return dict(zip(self._names, self._outputs(inputs), strict=True))
        except Exception as error:  # the library raises a dozen types of its own
            raise failed(self._target, error) from error

    def close(self) -> None:
        self._session = None

    def _outputs(self, inputs: Mapping[str, Data]) -> list[Data]:
        if self._session is None:
            raise RuntimeError("it was closed")
        feed = {name: self._feed(value) for name, value in inputs.items()}
        if self._plain_outputs:
            return cast("list[Data]", self._session.run(self._names, feed))
        whole = {
            name: self._values.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in feed.items()
        }
        return [_array(value) for value in self._session.run_with_ort_values(self._names, whole)]

    def _feed(self, value: Data) -> Any:
        """What the session takes for a value: itself, or an OrtValue for a type that numpy lacks."""
        if not isinstance(value, np.ndarray) or value.dtype.name not in _NUMBERS:
            return value
        raw = packed(value)
        made = self._values.ortvalue_from_shape_and_type(list(value.shape), _NUMBERS[value.dtype.name])
        ctypes.memmove(made.data_ptr(), raw.ctypes.data, raw.nbytes)
        return made


def packed(array: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of an array as a model file or ONNX Runtime holds them: (ceil(size * bits / 8),)."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    bits = BITS[array.dtype.name]
    if bits >= 8:
        return flat
    share = 8 // bits  # elements in a byte
    padded = np.zeros(math.ceil(flat.size / share) * share, np.uint8)
    padded[: flat.size] = flat & ((1 << bits) - 1)
    shifts = np.arange(share, dtype=np.uint8) * bits
    joined: np.ndarray[Any, np.dtype[np.uint8]] = np.bitwise_or.reduce(padded.reshape(-1, share) << shifts, axis=1)
    return joined


def unpacked(raw: np.ndarray[Any, np.dtype[np.uint8]], dtype: DType, shape: tuple[int, ...]) -> Array:
    """The array whose `packed` bytes these are."""
    bits = BITS[dtype]
    if bits >= 8:
        return raw.view(numpy_dtype(dtype)).reshape(shape)
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = ((raw[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[: math.prod(shape)]
    if dtype.startswith("float"):
        return codes.view(numpy_dtype(dtype)).reshape(shape)
    if dtype.startswith("int"):  # extend the sign
        sign = 1 << (bits - 1)
        codes = (codes ^ sign).astype(np.int8) - np.int8(sign)
    return codes.astype(numpy_dtype(dtype)).reshape(shape)


def _array(value: Any) -> Data:
    if not value.is_tensor():
        raise TypeError(f"an output of type {value.data_type()} beside one of a type that numpy lacks")
    dtype, _ = _TYPES.get(_element(value.data_type()), ("", 0))
    if not dtype:
        return cast("Array", value.numpy().copy())
    size = value.tensor_size_in_bytes()
    raw = np.frombuffer(bytearray(ctypes.string_at(value.data_ptr(), size) if size else b""), np.uint8)
    return unpacked(raw, dtype, tuple(value.shape()))


def _element(type_text: str) -> str:
    """'bfloat16' from 'tensor(bfloat16)' or 'seq(tensor(bfloat16))'."""
    return type_text.rpartition("(")[2].rstrip(")")

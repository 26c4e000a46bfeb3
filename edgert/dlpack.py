"""Tensors of other libraries whose element type numpy does not know; see dlpack.h of the DLPack standard."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

_UINT, _BFLOAT = 1, 4
"""DLDataTypeCode."""


class _DLTensor(ctypes.Structure):
    """As dlpack.h has it, up to the element type."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Lent:
    """A tensor on its way to numpy."""

    capsule: Any
    device: tuple[int, int]

    def __dlpack__(self, *, stream: None = None, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def bfloat16_bits(thing: Any) -> np.ndarray[Any, np.dtype[np.uint16]] | None:
    """The memory of a bfloat16 tensor as 16-bit integers, not copied; None for any other tensor.

    Args:
        thing: has `__dlpack__` and `__dlpack_device__`.

    Raises:
        BufferError, RuntimeError: it does not lend its memory, or that is no memory of this processor.
    """
    capsule = thing.__dlpack__()
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    try:
        tensor = _DLTensor.from_address(pointer_of(capsule, b"dltensor"))
    except ValueError:  # another kind of capsule
        return None
    if (tensor.code, tensor.bits, tensor.lanes) != (_BFLOAT, 16, 1):
        return None
    tensor.code = _UINT  # the description is ours until numpy has taken the capsule over
    bits: np.ndarray[Any, np.dtype[np.uint16]] = np.from_dlpack(_Lent(capsule, thing.__dlpack_device__()))  # type: ignore[assignment]  # it is told here, at run time
    return bits

"""TFLite's flatbuffers with a floor under them: every offset and length is checked before it is believed.

The accessors that flatc generates trust the file. Those of Python raise when they leave the buffer, which
`trusting` turns into `ModelCorrupt`; what they do not notice is a length that makes a loop endless, so every vector
is read through `Reader`, whose budget is the file's own size: an honest file has no more elements than bytes.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgert.errors import MissingPackage, ModelCorrupt
from edgert.formats.files import rest
from edgert.tensor import Array

_TABLES_AT_ONCE = 32
"""Of a large file, before their pages are let go."""
_EXTERNAL_GROUPS = 8
"""Index of `external_buffer_groups` among the fields of the schema's table Model."""


@cache
def schema() -> ModuleType:
    """The schema that ships inside ai-edge-litert, loaded on its own: not the package, and no native library.

    Raises:
        MissingPackage: ai-edge-litert is not installed.
    """
    package = importlib.util.find_spec("ai_edge_litert")
    folders = package.submodule_search_locations if package else None
    file = Path(next(iter(folders)), "schema_py_generated.py") if folders else None
    if file is None or not file.is_file() or importlib.util.find_spec("flatbuffers") is None:
        raise MissingPackage(
            "reading a .tflite needs the schema in the package ai-edge-litert; without it (as with tflite-runtime "
            "alone) a .tflite is loaded whole by the backend and cannot be cut.",
            'pip install "edgert[tflite]"',
            package="ai-edge-litert",
        )
    spec = importlib.util.spec_from_file_location("edgert.formats._tflite_schema", file)
    if spec is None or spec.loader is None:
        raise MissingPackage(
            f"{file} cannot be loaded.", "pip install --force-reinstall ai-edge-litert", package="ai-edge-litert"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def has_external_buffers(path: Path, data: memoryview) -> bool:
    """Whether a .tflite keeps weights in other files, from its root table alone (no schema needed)."""
    with trusting(path):
        root = struct.unpack_from("<I", data, 0)[0]
        table = root - struct.unpack_from("<i", data, root)[0]
        slot = 4 + 2 * _EXTERNAL_GROUPS
        size = struct.unpack_from("<H", data, table)[0]
        return bool(table >= 0 and size > slot and struct.unpack_from("<H", data, table + slot)[0])


def external_buffer(tensor: Any) -> int:
    """Number of a tensor's external buffer; 0 for none (older schemas know of none)."""
    return int(tensor.ExternalBuffer()) if hasattr(tensor, "ExternalBuffer") else 0


@contextmanager
def trusting(path: Path) -> Iterator[None]:
    """Turns what generated accessors raise on a malformed file into `ModelCorrupt`."""
    try:
        yield
    except (
        struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError
    ) as error:  # fmt: skip
        raise ModelCorrupt(
            f"model {str(path)!r} is a truncated or malformed TFLite file ({type(error).__name__}: {error}).",
            "Export or download it again.",
        ) from error


class Reader:
    """Reads one flatbuffer; every vector counts against a budget of elements."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self._left = len(data)
        self._looked = 0

    def corrupt(self, what: str) -> ModelCorrupt:
        """The error that says what is wrong with the file."""
        return ModelCorrupt(f"model {str(self.path)!r}: {what}.", "Export or download it again.")

    def spend(self, count: int, what: str) -> None:
        """Count elements against the budget.

        Raises:
            ModelCorrupt: there are more of them than the file has bytes.
        """
        self._left -= count
        if self._left < 0:
            raise self.corrupt(f"{what} claims more elements than the file has bytes")

    def tables(self, owner: Any, name: str) -> list[Any]:
        """A vector of tables, such as `owner.Tensors(i)` for i below `owner.TensorsLength()`."""
        if not hasattr(owner, f"{name}Length"):
            return []  # a field that this ai-edge-litert's schema does not know yet
        count = getattr(owner, f"{name}Length")()
        self.spend(8 * count, f"vector {name}")  # an offset of 4 bytes to a table of at least 4
        item = getattr(owner, name)
        found = [item(index) for index in range(count)]
        for table in found:
            self._check_table(table, name)
        return found

    def _check_table(self, table: Any, name: str) -> None:
        self._looked += 1
        if self._looked % _TABLES_AT_ONCE == 0:
            rest(self.data)
        position = table._tab.Pos if table is not None else -1
        if not 0 <= position <= len(self.data) - 4:
            raise self.corrupt(f"an entry of {name} lies outside the file")
        vtable = position - struct.unpack_from("<i", self.data, position)[0]
        if not 0 <= vtable <= len(self.data) - 4:
            raise self.corrupt(f"an entry of {name} has its layout outside the file")

    def numbers(self, owner: Any, name: str) -> Array:
        """A vector of numbers, as an array; empty where there is none."""
        if getattr(owner, f"{name}IsNone")():
            return np.empty(0, np.int64)
        self.spend(getattr(owner, f"{name}Length")(), f"vector {name}")
        array: Array = getattr(owner, f"{name}AsNumpy")()
        return array

    def integers(self, owner: Any, name: str) -> tuple[int, ...]:
        """A vector of integers."""
        return tuple(self.numbers(owner, name).tolist())

    def text(self, content: bytes | None) -> str:
        """A string field; bytes that are no UTF-8 survive the way back."""
        if content is None:
            return ""
        self.spend(len(content), "a string")
        return content.decode("utf-8", "surrogateescape")

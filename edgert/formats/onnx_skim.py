"""Reads a large .onnx file without its weights.

A file with its weights inside would come into memory as a whole when it is parsed. Here the message is walked field by
field on the mapped file, and the bytes of every large initialiser are left where they are: it becomes a tensor whose
external data is the file itself. To whoever reads the message it is a model with external data like any other.

The format is that of protocol buffers (a key of field number and wire type, then a number, four or eight bytes, or a
length and as many bytes: https://protobuf.dev/programming-guides/encoding); the field numbers are onnx.proto's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LARGE_BYTES = 1 << 26
"""Smaller files are parsed as they are."""
_LEFT_BYTES = 1 << 16
"""Initialisers of fewer bytes are taken along."""
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


class Malformed(ValueError):
    """The bytes are no protocol buffer."""


def skim(path: Path, data: memoryview) -> onnx.ModelProto:
    """The message without the bytes of its large initialisers.

    Args:
        path: of the file; its name becomes the location of what is left out.
        data: the file's bytes.

    Raises:
        Malformed: they are no message.
        google.protobuf.message.DecodeError: a part of them is none.
    """
    import onnx

    rest: list[memoryview] = []
    graphs: list[tuple[int, int]] = []
    for number, start, low, high in _fields(data, 0, len(data)):
        if number == _GRAPH:
            graphs.append((low, high))
        else:
            rest.append(data[start:high])
    model: onnx.ModelProto = onnx.ModelProto.FromString(b"".join(rest))
    for low, high in graphs:  # a field that appears twice is one, merged
        _add_graph(model.graph, path, data, low, high)
        model.graph.SetInParent()
    return model


def _add_graph(graph: onnx.GraphProto, path: Path, data: memoryview, low: int, high: int) -> None:
    rest: list[memoryview] = []
    tensors: list[tuple[int, int]] = []
    for number, start, begin, end in _fields(data, low, high):
        if number == _INITIALIZER:
            tensors.append((begin, end))
        else:
            rest.append(data[start:end])
    graph.MergeFromString(b"".join(rest))
    for begin, end in tensors:
        tensor = graph.initializer.add()
        raw = (
            [field for field in _fields(data, begin, end) if field[0] == _RAW_DATA] if end - begin > _LEFT_BYTES else []
        )
        if not raw:
            tensor.MergeFromString(bytes(data[begin:end]))
            continue
        _, start, first, last = raw[-1]  # of a field that appears twice the last counts
        others = [data[field[1] : field[3]] for field in _fields(data, begin, end) if field[0] != _RAW_DATA]
        tensor.MergeFromString(b"".join(others))
        tensor.data_location = tensor.EXTERNAL
        for key, value in (("location", path.name), ("offset", str(first)), ("length", str(last - first))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value


def _fields(data: memoryview, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where its key begins, where its content begins, where it ends) of each field."""
    while low < high:
        start = low
        key, low = _varint(data, low, high)
        kind = key & 7
        if kind == _VARINT:
            begin = low
            _, low = _varint(data, low, high)
        elif kind in (_EIGHT, _FOUR):
            begin, low = low, low + (8 if kind == _EIGHT else 4)
        elif kind == _LENGTH:
            size, begin = _varint(data, low, high)
            low = begin + size
        else:
            raise Malformed(f"wire type {kind} at byte {start}")
        if low > high:
            raise Malformed(f"a field at byte {start} leaves its message by {low - high} bytes")
        yield key >> 3, start, begin, low


def _varint(data: memoryview, low: int, high: int) -> tuple[int, int]:
    number = shift = 0
    while low < high and shift < 70:
        byte = data[low]
        low += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return number, low
        shift += 7
    raise Malformed(f"a number ends at byte {low} unfinished")
